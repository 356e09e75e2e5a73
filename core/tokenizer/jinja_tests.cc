#include "core/tokenizer/jinja_tests.h"

#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_text.h"

namespace nibble::jinja {
namespace {

template <bool (*holds)(const Value&)>
bool plain(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "a test without arguments", arguments, {});
  return holds(value);
}

template <Op op>
bool compares(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "a comparing test", arguments, {"other"}, 1);
  return compare(runtime, op, value, bound.at(0));
}

template <bool odd>
bool has_parity(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "odd or even", arguments, {});
  const Value rest = arithmetic(runtime, Op::kMod, value, Value::integer(2));
  return equal(runtime, rest, Value::integer(odd ? 1 : 0));
}

bool divisible(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "divisibleby", arguments, {"num"}, 1);
  return !arithmetic(runtime, Op::kMod, value, bound.at(0)).truthy();
}

bool same_as(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments bound(runtime, "sameas", arguments, {"other"}, 1);
  const Value& other = bound.at(0);
  if (value.type_name() != other.type_name()) return false;
  if (value.sequence() != nullptr) return value.sequence() == other.sequence();
  if (value.dict() != nullptr) return value.dict() == other.dict();
  return equal(runtime, value, other);
}

template <std::string (*convert)(std::string_view), std::string (*opposite)(std::string_view)>
bool has_case(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const BoundArguments none(runtime, "lower or upper", arguments, {});
  const std::string text = to_str(runtime, value);
  return convert(text) == text && opposite(text) != text;
}

bool is_true(const Value& value) { return value.is_bool() && value.truthy(); }
bool is_false(const Value& value) { return value.is_bool() && !value.truthy(); }
bool is_none(const Value& value) { return value.is_none(); }
bool is_bool(const Value& value) { return value.is_bool(); }
bool is_int(const Value& value) { return value.is_int(); }
bool is_float(const Value& value) { return value.is_float(); }
bool is_number(const Value& value) { return value.is_number(); }
bool is_string(const Value& value) { return value.is_string(); }
bool is_mapping(const Value& value) { return value.dict() != nullptr; }
bool is_defined(const Value& value) { return !value.is_undefined(); }
bool is_undefined(const Value& value) { return value.is_undefined(); }
bool is_callable(const Value& value) { return value.callable() != nullptr || value.is_undefined(); }
bool is_iterable(const Value& value) {
  return value.is_string() || value.dict() != nullptr || value.sequence() != nullptr ||
         value.is_undefined() || value.loop() != nullptr;
}
bool is_sequence(const Value& value) {
  const Sequence* sequence = value.sequence();
  if (sequence != nullptr) return sequence->indexable();
  return value.is_string() || value.dict() != nullptr || value.is_undefined();
}

constexpr Test kTests[] = {
    {"boolean", plain<is_bool>},
    {"callable", plain<is_callable>},
    {"defined", plain<is_defined>},
    {"divisibleby", divisible},
    {"even", has_parity<false>},
    {"false", plain<is_false>},
    {"float", plain<is_float>},
    {"in", compares<Op::kIn>},
    {"integer", plain<is_int>},
    {"iterable", plain<is_iterable>},
    {"lower", has_case<to_lower, to_upper>},
    {"mapping", plain<is_mapping>},
    {"none", plain<is_none>},
    {"number", plain<is_number>},
    {"odd", has_parity<true>},
    {"sameas", same_as},
    {"sequence", plain<is_sequence>},
    {"string", plain<is_string>},
    {"true", plain<is_true>},
    {"undefined", plain<is_undefined>},
    {"upper", has_case<to_upper, to_lower>},
    {"==", compares<Op::kEq>},
    {"eq", compares<Op::kEq>},
    {"equalto", compares<Op::kEq>},
    {"!=", compares<Op::kNe>},
    {"ne", compares<Op::kNe>},
    {">", compares<Op::kGt>},
    {"gt", compares<Op::kGt>},
    {"greaterthan", compares<Op::kGt>},
    {">=", compares<Op::kGe>},
    {"ge", compares<Op::kGe>},
    {"<", compares<Op::kLt>},
    {"lt", compares<Op::kLt>},
    {"lessthan", compares<Op::kLt>},
    {"<=", compares<Op::kLe>},
    {"le", compares<Op::kLe>},
};

}  // namespace

const Test* find_test(std::string_view name) {
  for (const Test& test : kTests) {
    if (test.name == name) return &test;
  }
  return nullptr;
}

}  // namespace nibble::jinja
