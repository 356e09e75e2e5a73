#include "core/tokenizer/jinja_filters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_text.h"

namespace nibble::jinja {
namespace {

/// A filter that maps str(value) and takes no arguments.
template <std::string (*convert)(std::string_view)>
Value on_text(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "a filter without arguments", arguments, {});
  return runtime.text(convert(to_str(runtime, value)));
}

std::string unchanged(std::string_view text) { return std::string(text); }

/// Jinja's own title: words start after white space, '-' and opening brackets.
std::string title_words(std::string_view text) {
  constexpr std::string_view kOpening = "-({[<";
  std::string out;
  bool start = true;
  for (const std::string_view c : characters(text)) {
    const bool between =
        strip_text(c, nullptr, Ends::kBoth).empty() || kOpening.find(c) != std::string_view::npos;
    out += start && !between ? to_upper(c) : to_lower(c);
    start = between;
  }
  return out;
}

Value trim(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "trim", arguments, {"chars"});
  const std::string* chars = bound.has(0) && !bound.at(0).is_none() ? &bound.text(0) : nullptr;
  return runtime.text(std::string(strip_text(to_str(runtime, value), chars, Ends::kBoth)));
}

Value replace(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "replace", arguments, {"old", "new", "count"}, 2);
  return runtime.text(replace_text(runtime, to_str(runtime, value), to_str(runtime, bound.at(0)),
                                   to_str(runtime, bound.at(1)), bound.integer(2, -1)));
}

Value use_default(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "default", arguments, {"default_value", "boolean"});
  const bool absent = value.is_undefined() || (bound.truthy(1, false) && !value.truthy());
  if (!absent) return value;
  return bound.has(0) ? bound.at(0) : runtime.text("");
}

Value indent(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "indent", arguments, {"width", "first", "blank"});
  std::string margin;
  if (bound.has(0) && bound.at(0).is_string()) {
    margin = bound.text(0);
  } else {
    const int64_t width = std::max<int64_t>(bound.integer(0, 4), 0);
    if (width > 4096) runtime.error("indent: the width {} is too large", width);
    margin.assign(static_cast<size_t>(width), ' ');
  }
  const bool blank = bound.truthy(2, false);
  if (!value.is_string()) runtime.error("indent needs a string, not {}", value.type_name());
  std::string text = *value.string();
  text += '\n';  // so a last empty line counts
  std::string out;
  bool first_line = true;
  for (const std::string_view line : split_lines(text, false)) {
    runtime.check_text_size(out.size(), margin.size() + line.size() + 1);
    if (!first_line) out += '\n';
    if (first_line ? bound.truthy(1, false) : (blank || !line.empty())) out += margin;
    out += line;
    first_line = false;
  }
  return runtime.text(std::move(out));
}

Value dump_json(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "tojson", arguments,
                             {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = bound.truthy(0, false);
  style.sort_keys = bound.truthy(3, false);
  if (bound.has(1) && !bound.at(1).is_none()) {
    style.pretty = true;
    style.item_separator.pop_back();  // the new line takes the place of the space
    if (bound.at(1).is_string()) {
      style.indent = bound.text(1);
    } else {
      const int64_t width = std::clamp<int64_t>(bound.integer(1, 0), 0, 4096);
      style.indent.assign(static_cast<size_t>(width), ' ');
    }
  }
  if (bound.has(2) && !bound.at(2).is_none()) {
    const Sequence* pair = bound.at(2).sequence();
    if (pair == nullptr || pair->items.size() != 2 || !pair->items[0].is_string() ||
        !pair->items[1].is_string()) {
      runtime.error("tojson: separators must be two strings");
    }
    style.item_separator = *pair->items[0].string();
    style.key_separator = *pair->items[1].string();
  }
  return runtime.text(to_json(runtime, value, style));
}

Value absolute(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "abs", arguments, {});
  if (value.is_float()) return Value::number(std::fabs(value.as_double()));
  if (!value.is_integral()) runtime.error("abs needs a number, not {}", value.type_name());
  return value.as_int() < 0 ? negate(runtime, value) : Value::integer(value.as_int());
}

bool parse_double(std::string_view text, double& out) {
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, out);
  return parsed.ec == std::errc() && parsed.ptr == end && !text.empty();
}

Value to_float(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "float", arguments, {"default"});
  if (const auto* missing = value.get_if<Undefined>()) runtime.error("{}", *missing->what);
  if (value.is_number()) return Value::number(value.as_double());
  double parsed = 0;
  if (value.is_string() &&
      parse_double(strip_text(*value.string(), nullptr, Ends::kBoth), parsed)) {
    return Value::number(parsed);
  }
  return bound.has(0) ? bound.at(0) : Value::number(0);
}

Value to_int(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "int", arguments, {"default", "base"});
  if (const auto* missing = value.get_if<Undefined>()) runtime.error("{}", *missing->what);
  if (bound.integer(1, 10) != 10) runtime.error("int: only base 10 is supported");
  if (value.is_integral()) return Value::integer(value.as_int());
  const Value absent = bound.has(0) ? bound.at(0) : Value::integer(0);
  double number = 0;
  if (value.is_float()) {
    number = value.as_double();
  } else if (value.is_string()) {
    std::string_view text = strip_text(*value.string(), nullptr, Ends::kBoth);
    if (text.size() > 1 && text[0] == '+' && text[1] != '-') text.remove_prefix(1);
    int64_t whole = 0;
    const char* end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data(), end, whole);
    if (parsed.ec == std::errc() && parsed.ptr == end && !text.empty())
      return Value::integer(whole);
    if (!parse_double(text, number)) return absent;
  } else {
    return absent;
  }
  if (!std::isfinite(number)) return absent;
  if (std::fabs(number) >= 9.2e18) runtime.error("int: {} does not fit into 64 bits", number);
  return Value::integer(static_cast<int64_t>(number));
}

Value round_number(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "round", arguments, {"precision", "method"});
  if (!value.is_number()) runtime.error("round needs a number, not {}", value.type_name());
  const int64_t precision = bound.integer(0, 0);
  const std::string method = bound.has(1) ? bound.text(1) : "common";
  if (precision < 0 || precision > 300) runtime.error("round: the precision must be 0 to 300");
  const double number = value.as_double();
  if (method == "common") {
    if (value.is_integral()) return Value::integer(value.as_int());
    if (!std::isfinite(number)) return value;
    // printf rounds the exact binary value, halves to even, as Python's round() does.
    std::array<char, 700> buffer;
    std::snprintf(buffer.data(), buffer.size(), "%.*f", static_cast<int>(precision), number);
    double rounded = 0;
    (void)parse_double(buffer.data(), rounded);
    return Value::number(rounded);
  }
  if (method != "ceil" && method != "floor") {
    runtime.error("round: the method must be common, ceil or floor");
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = number * scale;
  return Value::number((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

Value count(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "length", arguments, {});
  return Value::integer(length(runtime, value));
}

constexpr Filter kFilters[] = {
    {"abs", absolute},
    {"capitalize", on_text<capitalize>},
    {"count", count},
    {"d", use_default},
    {"default", use_default},
    {"float", to_float},
    {"indent", indent},
    {"int", to_int},
    {"length", count},
    {"lower", on_text<to_lower>},
    {"replace", replace},
    {"round", round_number},
    {"safe", on_text<unchanged>},  // nothing is escaped here
    {"string", on_text<unchanged>},
    {"title", on_text<title_words>},
    {"tojson", dump_json},
    {"trim", trim},
    {"upper", on_text<to_upper>},
};

}  // namespace

const Filter* find_filter(std::string_view name) {
  for (const Filter& filter : kFilters) {
    if (filter.name == name) return &filter;
  }
  return find_sequence_filter(name);
}

}  // namespace nibble::jinja
