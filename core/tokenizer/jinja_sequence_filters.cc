#include <algorithm>
#include <charconv>

#include "core/tokenizer/jinja_filters.h"
#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_tests.h"
#include "core/tokenizer/jinja_text.h"

namespace nibble::jinja {
namespace {

/// item.a.b.0 for the attribute "a.b.0"; an integer indexes.
Value dotted(Runtime& runtime, const Value& item, const Value& attribute) {
  if (!attribute.is_string()) return get_item(runtime, item, attribute);
  Value value = item;
  std::string_view rest = *attribute.string();
  while (true) {
    const std::string part(rest.substr(0, rest.find('.')));
    int64_t index = 0;
    const char* end = part.data() + part.size();
    const auto parsed = std::from_chars(part.data(), end, index);
    const bool number = parsed.ec == std::errc() && parsed.ptr == end && part[0] != '-';
    value = get_item(runtime, value, number ? Value::integer(index) : runtime.text(part));
    if (part.size() == rest.size()) return value;
    rest.remove_prefix(part.size() + 1);
  }
}

/// What sort, min, max and unique compare: the attribute, in lower case unless case counts.
Value sort_key(Runtime& runtime, const Value& item, const Value* attribute, bool case_sensitive) {
  Value key =
      attribute == nullptr || attribute->is_none() ? item : dotted(runtime, item, *attribute);
  if (case_sensitive || !key.is_string()) return key;
  return runtime.text(to_lower(*key.string()));
}

/// The items of map, select and reject, which take anything false for empty.
List items_if_true(Runtime& runtime, const Value& value) {
  return value.truthy() ? iterate(runtime, value) : List();
}

Value first(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "first", arguments, {});
  const Sequence* sequence = value.sequence();
  if (sequence != nullptr && sequence->form == Sequence::Form::kGenerator) {
    if (sequence->consumed < sequence->items.size()) return sequence->items[sequence->consumed++];
    return Value::undefined("No first item, sequence was empty.");
  }
  const List items = iterate(runtime, value);
  return items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
}

Value last(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "last", arguments, {});
  const Sequence* sequence = value.sequence();
  if (sequence != nullptr && sequence->form == Sequence::Form::kGenerator) {
    runtime.error("last needs a sequence that can be reversed, not a generator");
  }
  const List items = iterate(runtime, value);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value to_list(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "list", arguments, {});
  return runtime.list(iterate(runtime, value));
}

Value items_of(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "items", arguments, {});
  if (value.is_undefined()) return runtime.generator({});
  if (value.dict() == nullptr) runtime.error("items needs a mapping, not {}", value.type_name());
  List pairs;
  for (const auto& [key, held] : value.dict()->entries) pairs.push_back(runtime.tuple({key, held}));
  return runtime.generator(std::move(pairs));
}

Value dictsort(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "dictsort", arguments, {"case_sensitive", "by", "reverse"});
  if (value.dict() == nullptr) runtime.error("dictsort needs a mapping, not {}", value.type_name());
  const std::string by = bound.has(1) ? bound.text(1) : "key";
  if (by != "key" && by != "value") runtime.error("dictsort: by must be 'key' or 'value'");
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, held] : value.dict()->entries) {
    const Value& sorted_by = by == "key" ? key : held;
    keyed.emplace_back(sort_key(runtime, sorted_by, nullptr, bound.truthy(0, false)),
                       runtime.tuple({key, held}));
  }
  const bool reverse = bound.truthy(2, false);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? order(runtime, b.first, a.first) < 0 : order(runtime, a.first, b.first) < 0;
  });
  List pairs;
  for (auto& [key, pair] : keyed) pairs.push_back(std::move(pair));
  return runtime.list(std::move(pairs));
}

Value join(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "join", arguments, {"d", "attribute"});
  const std::string between = bound.has(0) ? to_str(runtime, bound.at(0)) : "";
  std::string out;
  bool any = false;
  for (const Value& item : iterate(runtime, value)) {
    const bool plain = !bound.has(1) || bound.at(1).is_none();
    const std::string text = to_str(runtime, plain ? item : dotted(runtime, item, bound.at(1)));
    runtime.check_text_size(out.size(), between.size() + text.size());
    if (any) out += between;
    out += text;
    any = true;
  }
  return runtime.text(std::move(out));
}

Value map(Runtime& runtime, const Value& value, const Arguments& arguments) {
  List out;
  if (arguments.positional.empty()) {
    const BoundArguments bound(runtime, "map", arguments, {"attribute", "default"}, 1);
    for (const Value& item : items_if_true(runtime, value)) {
      Value mapped = dotted(runtime, item, bound.at(0));
      const bool use_default = bound.has(1) && !bound.at(1).is_none() && mapped.is_undefined();
      out.push_back(use_default ? bound.at(1) : std::move(mapped));
    }
    return runtime.generator(std::move(out));
  }
  const std::string name = to_str(runtime, arguments.positional[0]);
  const Filter* filter = find_filter(name);
  if (filter == nullptr) runtime.error("unknown filter '{}'", name);
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : items_if_true(runtime, value)) {
    runtime.step();
    out.push_back(filter->apply(runtime, item, rest));
  }
  return runtime.generator(std::move(out));
}

/// select and reject, and with an attribute first selectattr and rejectattr.
template <bool by_attribute, bool keep>
Value select(Runtime& runtime, const Value& value, const Arguments& arguments) {
  Arguments rest = arguments;
  Value attribute;
  if (by_attribute) {
    if (rest.positional.empty()) runtime.error("the filter needs an attribute");
    attribute = rest.positional[0];
    rest.positional.erase(rest.positional.begin());
  }
  const Test* test = nullptr;
  if (!rest.positional.empty()) {
    const std::string name = to_str(runtime, rest.positional[0]);
    test = find_test(name);
    if (test == nullptr) runtime.error("unknown test '{}'", name);
    rest.positional.erase(rest.positional.begin());
  }
  List out;
  for (Value& item : items_if_true(runtime, value)) {
    runtime.step();
    const Value tested = by_attribute ? dotted(runtime, item, attribute) : item;
    const bool holds = test == nullptr ? tested.truthy() : test->holds(runtime, tested, rest);
    if (holds == keep) out.push_back(std::move(item));
  }
  return runtime.generator(std::move(out));
}

template <int wanted_sign>
Value extreme(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "min or max", arguments, {"case_sensitive", "attribute"});
  const Value* attribute = bound.has(1) ? &bound.at(1) : nullptr;
  Value best = Value::undefined("No aggregated item, sequence was empty.");
  Value best_key;
  for (Value& item : iterate(runtime, value)) {
    Value key = sort_key(runtime, item, attribute, bound.truthy(0, false));
    if (!best.is_undefined() && order(runtime, key, best_key) * wanted_sign <= 0) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return best;
}

Value reverse(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "reverse", arguments, {});
  if (const std::string* text = value.string()) {
    auto all = characters(*text);
    std::string out;
    for (auto c = all.rbegin(); c != all.rend(); ++c) out += *c;
    return runtime.text(std::move(out));
  }
  List items = iterate(runtime, value);
  std::reverse(items.begin(), items.end());
  return runtime.generator(std::move(items));
}

Value sort(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "sort", arguments,
                             {"reverse", "case_sensitive", "attribute"});
  const Value* attribute = bound.has(2) ? &bound.at(2) : nullptr;
  if (attribute != nullptr && attribute->is_string() &&
      attribute->string()->find(',') != std::string::npos) {
    runtime.error("sort: several attributes are not supported");
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : iterate(runtime, value)) {
    Value key = sort_key(runtime, item, attribute, bound.truthy(1, false));
    keyed.emplace_back(std::move(key), std::move(item));
  }
  const bool reversed = bound.truthy(0, false);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reversed ? order(runtime, b.first, a.first) < 0 : order(runtime, a.first, b.first) < 0;
  });
  List items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return runtime.list(std::move(items));
}

Value sum(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "sum", arguments, {"attribute", "start"});
  Value total = bound.has(1) ? bound.at(1) : Value::integer(0);
  if (total.is_string()) runtime.error("sum cannot start with a string");
  for (const Value& item : iterate(runtime, value)) {
    const bool plain = !bound.has(0) || bound.at(0).is_none();
    total = arithmetic(runtime, Op::kAdd, total, plain ? item : dotted(runtime, item, bound.at(0)));
  }
  return total;
}

Value unique(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "unique", arguments, {"case_sensitive", "attribute"});
  const Value* attribute = bound.has(1) ? &bound.at(1) : nullptr;
  List keys;
  List out;
  for (Value& item : iterate(runtime, value)) {
    Value key = sort_key(runtime, item, attribute, bound.truthy(0, false));
    const bool seen = std::any_of(keys.begin(), keys.end(),
                                  [&](const Value& old) { return equal(runtime, old, key); });
    if (seen) continue;
    keys.push_back(std::move(key));
    out.push_back(std::move(item));
  }
  return runtime.generator(std::move(out));
}

constexpr Filter kFilters[] = {
    {"dictsort", dictsort},
    {"first", first},
    {"items", items_of},
    {"join", join},
    {"last", last},
    {"list", to_list},
    {"map", map},
    {"max", extreme<1>},
    {"min", extreme<-1>},
    {"reject", select<false, false>},
    {"rejectattr", select<true, false>},
    {"reverse", reverse},
    {"select", select<false, true>},
    {"selectattr", select<true, true>},
    {"sort", sort},
    {"sum", sum},
    {"unique", unique},
};

}  // namespace

const Filter* find_sequence_filter(std::string_view name) {
  for (const Filter& filter : kFilters) {
    if (filter.name == name) return &filter;
  }
  return nullptr;
}

}  // namespace nibble::jinja
