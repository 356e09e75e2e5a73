#include "core/tokenizer/jinja_runtime.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble::jinja {
namespace {

constexpr size_t kTextOverhead = 96;  // string, shared count and a place in a list

}  // namespace

void Runtime::throw_error(const std::string& message) const {
  fail(ErrorCode::kInvalidArgument, "{} line {}: {}", name_, line, message);
}

void Runtime::throw_too_long() const {
  error("the template does not end within {} steps", limits.steps);
}

void Runtime::charge(size_t bytes, int depth) {
  value_bytes_ += static_cast<int64_t>(bytes);
  if (value_bytes_ > limits.value_bytes) {
    error("the template makes more than {} bytes of values", limits.value_bytes);
  }
  if (depth > limits.nesting) error("values are nested deeper than {}", limits.nesting);
}

void Runtime::check_text_size(size_t size, size_t bytes) const {
  if (bytes > limits.text_bytes || size > limits.text_bytes - bytes) {
    error("a text grows beyond {} bytes", limits.text_bytes);
  }
}

Value Runtime::text(std::string text) {
  check_text_size(text.size(), 0);
  charge(text.size() + kTextOverhead, 0);
  return Value(Value::Data(std::make_shared<const std::string>(std::move(text))));
}

Value Runtime::list(List items, Sequence::Form form) {
  int depth = 1;
  for (const Value& item : items) depth = std::max(depth, 1 + item.depth());
  charge(items.size() * sizeof(Value) + sizeof(Sequence), depth);
  auto held = std::make_shared<Sequence>();
  held->form = form;
  held->items = std::move(items);
  held->depth = depth;
  return Value(Value::Data(std::shared_ptr<const Sequence>(std::move(held))));
}

Value Runtime::dict(Dict dict) {
  charge(dict.entries.size() * 4 * sizeof(Value) + sizeof(Dict), dict.depth);
  return Value(Value::Data(std::make_shared<const Dict>(std::move(dict))));
}

Value Runtime::callable(Callable callable) {
  charge(sizeof(Callable), 1 + callable.receiver.depth());
  return Value(Value::Data(std::make_shared<const Callable>(std::move(callable))));
}

Value Runtime::make_namespace() {
  charge(sizeof(Namespace), 0);
  return Value(Value::Data(&namespaces_.emplace_back()));
}

BoundArguments::BoundArguments(const Runtime& runtime, std::string_view what,
                               const Arguments& arguments,
                               std::initializer_list<std::string_view> names, size_t required)
    : runtime_(runtime), what_(what), values_(names.size()) {
  if (arguments.positional.size() > names.size()) {
    runtime.error("{} takes at most {} arguments, got {}", what, names.size(),
                  arguments.positional.size());
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) runtime.error("{} has no argument '{}'", what, name);
    const auto index = static_cast<size_t>(found - names.begin());
    if (values_[index] != nullptr) runtime.error("{} got '{}' twice", what, name);
    values_[index] = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (values_[i] == nullptr) runtime.error("{} needs '{}'", what, names.begin()[i]);
  }
}

int64_t BoundArguments::integer(size_t index, int64_t absent) const {
  if (!has(index) || at(index).is_none()) return absent;
  if (!at(index).is_integral()) {
    runtime_.error("{} needs an integer, not {}", what_, at(index).type_name());
  }
  return at(index).as_int();
}

const std::string& BoundArguments::text(size_t index) const {
  if (!has(index) || !at(index).is_string()) {
    runtime_.error("{} needs a string, not {}", what_,
                   has(index) ? at(index).type_name() : "nothing");
  }
  return *at(index).string();
}

}  // namespace nibble::jinja
