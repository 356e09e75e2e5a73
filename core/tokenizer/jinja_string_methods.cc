#include "core/tokenizer/jinja_string_methods.h"

#include <utf8proc.h>

#include <algorithm>

#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_text.h"
#include "core/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

/// prefix or suffix: a string or a tuple of them.
Value tries_affixes(Runtime& runtime, const Arguments& arguments, std::string_view what,
                    const auto& matches) {
  const BoundArguments bound(runtime, what, arguments, {"affix"}, 1);
  if (bound.at(0).is_string()) return Value::boolean(matches(*bound.at(0).string()));
  const Sequence* options = bound.at(0).sequence();
  if (options == nullptr || options->form != Sequence::Form::kTuple) {
    runtime.error("{} needs a string or a tuple, not {}", what, bound.at(0).type_name());
  }
  for (const Value& option : options->items) {
    if (!option.is_string()) runtime.error("{} needs a tuple of strings", what);
    if (matches(*option.string())) return Value::boolean(true);
  }
  return Value::boolean(false);
}

bool starts_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

bool ends_with(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

Value startswith(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  return tries_affixes(runtime, arguments, "startswith",
                       [&](const std::string& prefix) { return starts_with(self, prefix); });
}

Value endswith(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  return tries_affixes(runtime, arguments, "endswith",
                       [&](const std::string& suffix) { return ends_with(self, suffix); });
}

template <Ends ends>
Value strip(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "strip", arguments, {"chars"});
  const std::string* chars = bound.has(0) && !bound.at(0).is_none() ? &bound.text(0) : nullptr;
  runtime.step(1 + static_cast<int64_t>(chars == nullptr ? 0 : chars->size() / 16));
  return runtime.text(std::string(strip_text(self, chars, ends)));
}

Value text_list(Runtime& runtime, const std::vector<std::string_view>& pieces) {
  List items;
  for (const std::string_view piece : pieces) items.push_back(runtime.text(std::string(piece)));
  return runtime.list(std::move(items));
}

std::vector<std::string_view> split_spaces(std::string_view text, int64_t limit) {
  std::vector<std::string_view> pieces;
  while (true) {
    text = strip_text(text, nullptr, Ends::kLeft);
    if (text.empty()) return pieces;
    if (limit >= 0 && std::ssize(pieces) >= limit) {
      pieces.push_back(text);
      return pieces;
    }
    size_t end = 0;
    while (end < text.size()) {
      const Utf8Step step = utf8_step(text, end);
      if (is_python_space(step.code_point)) break;
      end += step.bytes;
    }
    pieces.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
}

Value split(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "split", arguments, {"sep", "maxsplit"});
  const int64_t limit = bound.integer(1, -1);
  if (!bound.has(0) || bound.at(0).is_none()) return text_list(runtime, split_spaces(self, limit));
  const std::string& separator = bound.text(0);
  if (separator.empty()) runtime.error("split: the separator is empty");
  std::vector<std::string_view> pieces;
  const std::string_view text = self;
  size_t pos = 0;
  while (limit < 0 || std::ssize(pieces) < limit) {
    const size_t at = find_text(text, separator, pos);
    if (at == std::string_view::npos) break;
    pieces.push_back(text.substr(pos, at - pos));
    pos = at + separator.size();
  }
  pieces.push_back(text.substr(pos));
  return text_list(runtime, pieces);
}

/// Searching backwards is not linear, so it is paid for.
void pay_for_backward_search(Runtime& runtime, std::string_view text, std::string_view wanted) {
  runtime.step(1 + static_cast<int64_t>(text.size() / 64 * (1 + wanted.size() / 64)));
}

Value rsplit(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "rsplit", arguments, {"sep", "maxsplit"}, 1);
  const std::string& separator = bound.text(0);
  const int64_t limit = bound.integer(1, -1);
  if (separator.empty()) runtime.error("rsplit: the separator is empty");
  pay_for_backward_search(runtime, self, separator);
  std::vector<std::string_view> pieces;
  std::string_view text = self;
  while (limit < 0 || std::ssize(pieces) < limit) {
    const size_t at = text.rfind(separator);
    if (at == std::string_view::npos) break;
    pieces.push_back(text.substr(at + separator.size()));
    text = text.substr(0, at);
  }
  pieces.push_back(text);
  std::reverse(pieces.begin(), pieces.end());
  return text_list(runtime, pieces);
}

Value splitlines(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "splitlines", arguments, {"keepends"});
  return text_list(runtime, split_lines(self, bound.truthy(0, false)));
}

template <std::string (*convert)(std::string_view)>
Value converted(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "a method without arguments", arguments, {});
  return runtime.text(convert(self));
}

bool is_cased(char32_t c) {
  const auto point = static_cast<utf8proc_int32_t>(c);
  return utf8proc_tolower(point) != point || utf8proc_toupper(point) != point ||
         utf8proc_category(point) == UTF8PROC_CATEGORY_LL;
}

std::string titled(std::string_view text) {
  std::string out;
  bool inside = false;
  for (const std::string_view c : characters(text)) {
    out += inside ? to_lower(c) : capitalize(c);
    inside = is_cased(utf8_step(c, 0).code_point);
  }
  return out;
}

Value replace(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "replace", arguments, {"old", "new", "count"}, 2);
  return runtime.text(
      replace_text(runtime, self, bound.text(0), bound.text(1), bound.integer(2, -1)));
}

Value position(const std::string& self, size_t byte) {
  if (byte == std::string::npos) return Value::integer(-1);
  return Value::integer(
      static_cast<int64_t>(character_count(std::string_view(self).substr(0, byte))));
}

Value find(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "find", arguments, {"sub"}, 1);
  runtime.step(1 + static_cast<int64_t>(self.size() / 64));
  return position(self, find_text(self, bound.text(0)));
}

Value rfind(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "rfind", arguments, {"sub"}, 1);
  pay_for_backward_search(runtime, self, bound.text(0));
  return position(self, self.rfind(bound.text(0)));
}

Value index(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  Value found = find(runtime, self, arguments);
  if (found.as_int() < 0) runtime.error("index: substring not found");
  return found;
}

Value count(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "count", arguments, {"sub"}, 1);
  const std::string& wanted = bound.text(0);
  runtime.step(1 + static_cast<int64_t>(self.size() / 64));
  if (wanted.empty()) return Value::integer(static_cast<int64_t>(character_count(self)) + 1);
  int64_t total = 0;
  for (size_t at = find_text(self, wanted); at != std::string::npos;
       at = find_text(self, wanted, at + wanted.size())) {
    ++total;
  }
  return Value::integer(total);
}

Value join(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "join", arguments, {"iterable"}, 1);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(runtime, bound.at(0))) {
    if (!item.is_string()) runtime.error("join needs strings, not {}", item.type_name());
    runtime.check_text_size(out.size(), self.size() + item.string()->size());
    if (!first) out += self;
    out += *item.string();
    first = false;
  }
  return runtime.text(std::move(out));
}

Value removeprefix(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "removeprefix", arguments, {"prefix"}, 1);
  return runtime.text(starts_with(self, bound.text(0)) ? self.substr(bound.text(0).size()) : self);
}

Value removesuffix(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "removesuffix", arguments, {"suffix"}, 1);
  const bool has = ends_with(self, bound.text(0));
  return runtime.text(has ? self.substr(0, self.size() - bound.text(0).size()) : self);
}

Value partition(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "partition", arguments, {"sep"}, 1);
  const std::string& separator = bound.text(0);
  if (separator.empty()) runtime.error("partition: the separator is empty");
  const size_t at = find_text(self, separator);
  if (at == std::string::npos) {
    return runtime.tuple({runtime.text(self), runtime.text(""), runtime.text("")});
  }
  return runtime.tuple({runtime.text(self.substr(0, at)), runtime.text(separator),
                        runtime.text(self.substr(at + separator.size()))});
}

bool all_characters(std::string_view text, bool (*holds)(char32_t)) {
  const auto all = characters(text);
  return !all.empty() && std::all_of(all.begin(), all.end(), [&](std::string_view c) {
    return holds(utf8_step(c, 0).code_point);
  });
}

bool is_letter(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal_digit(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_ND;
}

bool is_letter_or_number(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return is_letter(c) || (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

template <bool (*holds)(char32_t)>
Value all_are(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "a method without arguments", arguments, {});
  runtime.step(1 + static_cast<int64_t>(self.size() / 16));
  return Value::boolean(all_characters(self, holds));
}

template <std::string (*convert)(std::string_view), std::string (*opposite)(std::string_view)>
Value has_case(Runtime& runtime, const std::string& self, const Arguments& arguments) {
  const BoundArguments bound(runtime, "a method without arguments", arguments, {});
  runtime.step(1 + static_cast<int64_t>(self.size() / 16));
  return Value::boolean(convert(self) == self && opposite(self) != self);
}

struct Entry {
  std::string_view name;
  StringMethod method;
};

constexpr Entry kMethods[] = {
    {"capitalize", converted<capitalize>},
    {"count", count},
    {"endswith", endswith},
    {"find", find},
    {"index", index},
    {"isalnum", all_are<is_letter_or_number>},
    {"isalpha", all_are<is_letter>},
    {"isdigit", all_are<is_decimal_digit>},
    {"islower", has_case<to_lower, to_upper>},
    {"isspace", all_are<is_python_space>},
    {"isupper", has_case<to_upper, to_lower>},
    {"join", join},
    {"lower", converted<to_lower>},
    {"lstrip", strip<Ends::kLeft>},
    {"partition", partition},
    {"removeprefix", removeprefix},
    {"removesuffix", removesuffix},
    {"replace", replace},
    {"rfind", rfind},
    {"rsplit", rsplit},
    {"rstrip", strip<Ends::kRight>},
    {"split", split},
    {"splitlines", splitlines},
    {"startswith", startswith},
    {"strip", strip<Ends::kBoth>},
    {"title", converted<titled>},
    {"upper", converted<to_upper>},
};

}  // namespace

StringMethod find_string_method(std::string_view name) {
  for (const Entry& entry : kMethods) {
    if (entry.name == name) return entry.method;
  }
  return nullptr;
}

}  // namespace nibble::jinja
