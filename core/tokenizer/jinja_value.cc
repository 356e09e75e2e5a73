#include "core/tokenizer/jinja_value.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble::jinja {

const std::string* Value::string() const {
  const auto* text = get_if<Text>();
  return text == nullptr ? nullptr : text->get();
}

const Sequence* Value::sequence() const {
  const auto* held = get_if<std::shared_ptr<const Sequence>>();
  return held == nullptr ? nullptr : held->get();
}

const Dict* Value::dict() const {
  const auto* held = get_if<std::shared_ptr<const Dict>>();
  return held == nullptr ? nullptr : held->get();
}

Namespace* Value::name_space() const {
  const auto* held = get_if<Namespace*>();
  return held == nullptr ? nullptr : *held;
}

const Callable* Value::callable() const {
  const auto* held = get_if<std::shared_ptr<const Callable>>();
  return held == nullptr ? nullptr : held->get();
}

LoopState* Value::loop() const {
  const auto* held = get_if<std::shared_ptr<LoopState>>();
  return held == nullptr ? nullptr : held->get();
}

int64_t Value::as_int() const {
  NIBBLE_CHECK(is_integral(), "want an integer, got {}", type_name());
  return is_bool() ? int64_t{*get_if<bool>()} : *get_if<int64_t>();
}

double Value::as_double() const {
  return is_float() ? *get_if<double>() : static_cast<double>(as_int());
}

bool Value::truthy() const {
  if (is_none() || is_undefined()) return false;
  if (is_number()) return as_double() != 0.0;
  if (const std::string* text = string()) return !text->empty();
  if (const Sequence* list = sequence()) {
    return list->form == Sequence::Form::kGenerator || !list->items.empty();
  }
  if (const Dict* mapping = dict()) return !mapping->entries.empty();
  return true;
}

int Value::depth() const {
  if (const Sequence* list = sequence()) return list->depth;
  if (const Dict* mapping = dict()) return mapping->depth;
  const Callable* called = callable();
  if (called != nullptr) return 1 + called->receiver.depth();
  return loop() != nullptr ? 1 : 0;
}

std::string_view Value::type_name() const {
  if (is_none()) return "NoneType";
  if (is_undefined()) return "Undefined";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return "str";
  if (const Sequence* list = sequence()) {
    switch (list->form) {
      case Sequence::Form::kList:
        return "list";
      case Sequence::Form::kTuple:
        return "tuple";
      case Sequence::Form::kRange:
        return "range";
      case Sequence::Form::kView:
        return "dict view";
      case Sequence::Form::kGenerator:
        return "generator";
    }
  }
  if (dict() != nullptr) return "dict";
  if (name_space() != nullptr) return "Namespace";
  return callable() != nullptr ? "function" : "LoopContext";
}

const Value* Dict::find(std::string_view key) const {
  const auto found = by_text.find(key);
  return found == by_text.end() ? nullptr : &entries[found->second].second;
}

const Value* Dict::find(const Value& key) const {
  if (const std::string* text = key.string()) return find(*text);
  if (by_text.size() == entries.size()) return nullptr;
  for (const auto& [candidate, value] : entries) {
    if (equal_scalars(candidate, key)) return &value;
  }
  return nullptr;
}

void Dict::set(Value key, Value value) {
  depth = std::max({depth, 1 + key.depth(), 1 + value.depth()});
  if (const Value* old = find(key)) {
    *const_cast<Value*>(old) = std::move(value);  // `old` is inside this non-const object
    return;
  }
  entries.emplace_back(std::move(key), std::move(value));
  // The text lives in shared immutable storage, so the view survives moves of the entry.
  const std::string* text = entries.back().first.string();
  if (text != nullptr) by_text.emplace(*text, entries.size() - 1);
}

bool equal_scalars(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.as_int() == b.as_int();
  if (a.is_number() && b.is_number()) return a.as_double() == b.as_double();
  if (a.is_string() && b.is_string()) return *a.string() == *b.string();
  return a.is_none() && b.is_none();
}

}  // namespace nibble::jinja
