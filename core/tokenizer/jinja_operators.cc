#include "core/tokenizer/jinja_operators.h"

#include <algorithm>
#include <cmath>

#include "core/tokenizer/jinja_text.h"

namespace nibble::jinja {
namespace {

bool equal_lists(Runtime& runtime, const Sequence& a, const Sequence& b) {
  if (a.form != b.form || a.form == Sequence::Form::kGenerator) return false;
  if (a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    if (!equal(runtime, a.items[i], b.items[i])) return false;
  }
  return true;
}

bool equal_dicts(Runtime& runtime, const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.find(key);
    if (other == nullptr || !equal(runtime, value, *other)) return false;
  }
  return true;
}

}  // namespace

bool equal(Runtime& runtime, const Value& a, const Value& b) {
  runtime.step();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.sequence() != nullptr && b.sequence() != nullptr) {
    return a.sequence() == b.sequence() || equal_lists(runtime, *a.sequence(), *b.sequence());
  }
  if (a.dict() != nullptr && b.dict() != nullptr) {
    return a.dict() == b.dict() || equal_dicts(runtime, *a.dict(), *b.dict());
  }
  if (a.name_space() != nullptr || a.callable() != nullptr || a.loop() != nullptr) {
    return a.name_space() == b.name_space() && a.callable() == b.callable() && a.loop() == b.loop();
  }
  return equal_scalars(a, b);
}

int order(Runtime& runtime, const Value& a, const Value& b) {
  runtime.step();
  const auto sign = [](auto x, auto y) { return x < y ? -1 : (y < x ? 1 : 0); };
  if (a.is_integral() && b.is_integral()) return sign(a.as_int(), b.as_int());
  if (a.is_number() && b.is_number()) return sign(a.as_double(), b.as_double());
  // UTF-8 orders bytewise as code points do.
  if (a.is_string() && b.is_string()) return sign(*a.string(), *b.string());
  const Sequence* x = a.sequence();
  const Sequence* y = b.sequence();
  const bool alike = x != nullptr && y != nullptr && x->form == y->form;
  if (!alike || !x->printable()) {
    runtime.error("{} and {} cannot be ordered", a.type_name(), b.type_name());
  }
  for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i) {
    if (!equal(runtime, x->items[i], y->items[i])) {
      return order(runtime, x->items[i], y->items[i]);
    }
  }
  return sign(x->items.size(), y->items.size());
}

namespace {

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  if (const std::string* text = container.string()) {
    if (!item.is_string()) runtime.error("'in' a string needs a string, not {}", item.type_name());
    runtime.step(1 + static_cast<int64_t>(text->size() / 64));
    return find_text(*text, *item.string()) != std::string_view::npos;
  }
  if (const Dict* dict = container.dict()) {
    const bool list = item.sequence() != nullptr && item.sequence()->form == Sequence::Form::kList;
    if (list || item.dict() != nullptr) {
      runtime.error("a {} cannot be the key of a mapping", item.type_name());
    }
    runtime.step(1 + static_cast<int64_t>(item.is_string() ? 0 : dict->entries.size()));
    return dict->find(item) != nullptr;
  }
  if (container.is_undefined()) return false;
  for (const Value& candidate : iterate(runtime, container)) {
    if (equal(runtime, candidate, item)) return true;
  }
  return false;
}

bool unordered(const Value& a, const Value& b) {  // a NaN is in no order
  return a.is_number() && b.is_number() && (std::isnan(a.as_double()) || std::isnan(b.as_double()));
}

}  // namespace

bool compare(Runtime& runtime, Op op, const Value& a, const Value& b) {
  switch (op) {
    case Op::kEq:
      return equal(runtime, a, b);
    case Op::kNe:
      return !equal(runtime, a, b);
    case Op::kIn:
      return contains(runtime, b, a);
    case Op::kNotIn:
      return !contains(runtime, b, a);
    default:
      break;
  }
  if (unordered(a, b)) return false;
  const int sign = order(runtime, a, b);
  if (op == Op::kLt) return sign < 0;
  if (op == Op::kLe) return sign <= 0;
  return op == Op::kGt ? sign > 0 : sign >= 0;
}

namespace {

[[noreturn]] void overflow(const Runtime& runtime) {
  runtime.error("an integer does not fit into 64 bits");
}

int64_t integer_power(const Runtime& runtime, int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (true) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) overflow(runtime);
    exponent >>= 1;
    if (exponent == 0) return result;
    if (__builtin_mul_overflow(base, base, &base)) overflow(runtime);
  }
}

Value integer_arithmetic(const Runtime& runtime, Op op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflowed = false;
  switch (op) {
    case Op::kAdd:
      overflowed = __builtin_add_overflow(a, b, &result);
      break;
    case Op::kSub:
      overflowed = __builtin_sub_overflow(a, b, &result);
      break;
    case Op::kMul:
      overflowed = __builtin_mul_overflow(a, b, &result);
      break;
    case Op::kPow:
      if (b < 0) return Value::number(std::pow(static_cast<double>(a), static_cast<double>(b)));
      return Value::integer(integer_power(runtime, a, b));
    default: {  // kDiv, kFloorDiv, kMod
      if (b == 0) runtime.error("division by zero");
      if (op == Op::kDiv) return Value::number(static_cast<double>(a) / static_cast<double>(b));
      if (b == -1) {  // the one quotient that can overflow
        if (op == Op::kMod) return Value::integer(0);
        if (__builtin_sub_overflow(int64_t{0}, a, &result)) overflow(runtime);
        return Value::integer(result);
      }
      const bool round_down = a % b != 0 && ((a < 0) != (b < 0));
      result = op == Op::kFloorDiv ? a / b - (round_down ? 1 : 0) : a % b + (round_down ? b : 0);
    }
  }
  if (overflowed) overflow(runtime);
  return Value::integer(result);
}

Value float_arithmetic(const Runtime& runtime, Op op, double a, double b) {
  switch (op) {
    case Op::kAdd:
      return Value::number(a + b);
    case Op::kSub:
      return Value::number(a - b);
    case Op::kMul:
      return Value::number(a * b);
    case Op::kPow:
      if (a < 0 && b != std::floor(b)) runtime.error("a power would be complex");
      if (a == 0 && b < 0) runtime.error("division by zero");
      return Value::number(std::pow(a, b));
    default:
      break;
  }
  if (b == 0) runtime.error("division by zero");
  if (op == Op::kDiv) return Value::number(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && ((rest < 0) != (b < 0))) rest += b;
  if (op == Op::kMod) return Value::number(rest == 0 ? std::copysign(0.0, b) : rest);
  const double quotient = (a - rest) / b;
  const double floored = std::floor(quotient);
  return Value::number(quotient - floored > 0.5 ? floored + 1 : floored);
}

Value repeat(Runtime& runtime, const Value& value, int64_t count) {
  count = std::max<int64_t>(count, 0);
  if (const std::string* text = value.string()) {
    if (!text->empty() && count > static_cast<int64_t>(runtime.limits.text_bytes / text->size())) {
      runtime.check_text_size(runtime.limits.text_bytes, 1);
    }
    std::string out;
    for (int64_t i = 0; i < count && !text->empty(); ++i) out += *text;
    return runtime.text(std::move(out));
  }
  const Sequence& sequence = *value.sequence();
  const auto size = std::ssize(sequence.items);
  if (size > 0 && count > runtime.limits.value_bytes / static_cast<int64_t>(sizeof(Value)) / size) {
    runtime.error("a {} of {} times {} items is too large", value.type_name(), count, size);
  }
  List items;
  for (int64_t i = 0; i < count && size > 0; ++i) {
    runtime.step(size);
    items.insert(items.end(), sequence.items.begin(), sequence.items.end());
  }
  return runtime.list(std::move(items), sequence.form);
}

bool repeatable(const Value& value) {
  const Sequence* sequence = value.sequence();
  return value.is_string() || (sequence != nullptr && sequence->printable());
}

std::string_view op_text(Op op) {
  static constexpr std::string_view kTexts[] = {"+", "-", "*", "/", "//", "%", "**"};
  return kTexts[static_cast<int>(op)];
}

}  // namespace

Value arithmetic(Runtime& runtime, Op op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    return integer_arithmetic(runtime, op, a.as_int(), b.as_int());
  }
  if (a.is_number() && b.is_number()) {
    return float_arithmetic(runtime, op, a.as_double(), b.as_double());
  }
  if (op == Op::kAdd && a.is_string() && b.is_string()) {
    runtime.check_text_size(a.string()->size(), b.string()->size());
    return runtime.text(*a.string() + *b.string());
  }
  if (op == Op::kAdd && repeatable(a) && repeatable(b) && a.sequence() != nullptr &&
      b.sequence() != nullptr && a.sequence()->form == b.sequence()->form) {
    List items = a.sequence()->items;
    items.insert(items.end(), b.sequence()->items.begin(), b.sequence()->items.end());
    return runtime.list(std::move(items), a.sequence()->form);
  }
  if (op == Op::kMul && repeatable(a) && b.is_integral()) return repeat(runtime, a, b.as_int());
  if (op == Op::kMul && repeatable(b) && a.is_integral()) return repeat(runtime, b, a.as_int());
  for (const Value* value : {&a, &b}) {
    if (const auto* missing = value->get_if<Undefined>()) runtime.error("{}", *missing->what);
  }
  runtime.error("{} {} {} is not supported", a.type_name(), op_text(op), b.type_name());
}

Value negate(Runtime& runtime, const Value& value) {
  if (value.is_integral()) return integer_arithmetic(runtime, Op::kSub, 0, value.as_int());
  if (value.is_float()) return Value::number(-value.as_double());
  runtime.error("{} cannot be negated", value.type_name());
}

}  // namespace nibble::jinja
