#include "core/config/scalar.h"

#include <charconv>
#include <cmath>

#include "core/base/fail.h"
#include "core/config/nearest.h"

namespace nibble {
namespace {

template <typename... Handlers>
struct Overloaded : Handlers... {
  using Handlers::operator()...;
};
template <typename... Handlers>
Overloaded(Handlers...) -> Overloaded<Handlers...>;

std::string describe(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
    case YamlNode::Kind::kScalar:
      break;
  }
  constexpr size_t kLongestQuote = 60;
  std::string text = node.text.substr(0, kLongestQuote);
  if (text.size() < node.text.size()) text += "...";
  return node.is_quoted ? fmt::format("the text \"{}\"", text) : fmt::format("'{}'", text);
}

std::string want(std::string_view what, const YamlNode& node) {
  return fmt::format("want {}, got {}", what, describe(node));
}

template <typename Number>
bool parse_number(const YamlNode& node, Number& value) {
  if (node.kind != YamlNode::Kind::kScalar || node.is_quoted) return false;
  std::string_view text = node.text;
  if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

std::string check_limits(const Limits& limits, double value, const YamlNode& node) {
  if (limits.allow(value)) return "";
  return fmt::format("{} is out of range; it must be {}", node.text, limits.describe());
}

template <typename Integer>
std::string assign_integer(Integer& target, const Limits& limits, const YamlNode& node) {
  Integer value = 0;
  if (!parse_number(node, value)) {
    return want(sizeof(Integer) == 4 ? "an integer below 2^31" : "an integer", node);
  }
  std::string problem = check_limits(limits, static_cast<double>(value), node);
  if (problem.empty()) target = value;
  return problem;
}

std::string assign_double(double& target, const Limits& limits, const YamlNode& node) {
  double value = 0;
  if (!parse_number(node, value) || !std::isfinite(value)) return want("a finite number", node);
  std::string problem = check_limits(limits, value, node);
  if (problem.empty()) target = value;
  return problem;
}

std::string assign_bool(bool& target, const YamlNode& node) {
  const bool is_plain = node.kind == YamlNode::Kind::kScalar && !node.is_quoted;
  if (!is_plain || (node.text != "true" && node.text != "false")) {
    return want("true or false", node);
  }
  target = node.text == "true";
  return "";
}

std::string assign_enum(const EnumRef& target, const YamlNode& node) {
  if (node.kind == YamlNode::Kind::kScalar) {
    for (size_t i = 0; i < target.names.size(); ++i) {
      if (target.names[i] != node.text) continue;
      target.set(i);
      return "";
    }
    const std::string nearest = nearest_word(node.text, target.names);
    if (!nearest.empty()) {
      return want(fmt::format("one of {}", fmt::join(target.names, ", ")), node) +
             fmt::format("; did you mean '{}'?", nearest);
    }
  }
  return want(fmt::format("one of {}", fmt::join(target.names, ", ")), node);
}

template <typename Text>
std::string assign_text(Text& target, const YamlNode& node) {
  if (node.kind == YamlNode::Kind::kNull) return "want text, got nothing; write \"\" for no text";
  if (node.kind != YamlNode::Kind::kScalar) return want("text", node);
  target = node.text;
  return "";
}

/// Plain where every YAML reader sees the same text, otherwise in double quotes.
std::string quote_text(std::string_view text) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  bool is_plain = !text.empty() && (is_letter(text[0]) || text[0] == '/' || text[0] == '.');
  bool has_letter = false;
  for (const char c : text) {
    has_letter = has_letter || is_letter(c);
    if (!is_letter(c) && !(c >= '0' && c <= '9') && c != '/' && c != '.' && c != '_' && c != '-') {
      is_plain = false;
    }
  }
  for (const std::string_view word :
       {"null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE",
        "yes",  "Yes",  "YES",  "no",   "No",   "NO",   "on",    "On",    "ON",
        "off",  "Off",  "OFF",  "y",    "Y",    "n",    "N",     ".inf",  ".nan"}) {
    if (text == word) is_plain = false;
  }
  if (is_plain && has_letter) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      quoted += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string format_double(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

}  // namespace

std::string assign_scalar(const ScalarRef& target, const Limits& limits, const YamlNode& node) {
  return std::visit(Overloaded{
                        [&](bool* value) { return assign_bool(*value, node); },
                        [&](int* value) { return assign_integer(*value, limits, node); },
                        [&](int64_t* value) { return assign_integer(*value, limits, node); },
                        [&](double* value) { return assign_double(*value, limits, node); },
                        [&](std::string* value) { return assign_text(*value, node); },
                        [&](std::filesystem::path* value) { return assign_text(*value, node); },
                        [&](const EnumRef& value) { return assign_enum(value, node); },
                    },
                    target);
}

std::string scalar_to_yaml(const ScalarRef& source) {
  return std::visit(
      Overloaded{
          [](const bool* value) { return std::string(*value ? "true" : "false"); },
          [](const int* value) { return fmt::format("{}", *value); },
          [](const int64_t* value) { return fmt::format("{}", *value); },
          [](const double* value) { return format_double(*value); },
          [](const std::string* value) { return quote_text(*value); },
          [](const std::filesystem::path* value) { return quote_text(value->string()); },
          [](const EnumRef& value) {
            const size_t index = value.get();
            NIBBLE_CHECK(index < value.names.size(), "enum value without a name");
            return quote_text(value.names[index]);
          },
      },
      source);
}

std::string scalar_type_name(const ScalarRef& scalar) {
  return std::visit(
      Overloaded{
          [](const bool*) { return std::string("true or false"); },
          [](const int*) { return std::string("integer"); },
          [](const int64_t*) { return std::string("integer"); },
          [](const double*) { return std::string("number"); },
          [](const std::string*) { return std::string("text"); },
          [](const std::filesystem::path*) { return std::string("path"); },
          [](const EnumRef& value) { return fmt::format("{}", fmt::join(value.names, " | ")); },
      },
      scalar);
}

}  // namespace nibble
