// Attributes, items, slices and iteration of template values.
#include <algorithm>

#include "core/tokenizer/jinja_methods.h"
#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_text.h"
#include "core/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

Value missing(const Value& value, std::string_view name) {
  return Value::undefined(
      fmt::format("'{} object' has no attribute '{}'", value.type_name(), name));
}

Value item_or_undefined(Runtime& runtime, const LoopState& loop, int64_t index) {
  if (index < 0 || index >= std::ssize(loop.items)) {
    return Value::undefined(index < 0 ? "there is no previous item" : "there is no next item");
  }
  runtime.step();
  return loop.items[index];
}

Value loop_attribute(Runtime& runtime, const Value& value, std::string_view name) {
  const LoopState& loop = *value.loop();
  const auto index = static_cast<int64_t>(loop.index);
  const auto size = std::ssize(loop.items);
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(size - index);
  if (name == "revindex0") return Value::integer(size - index - 1);
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == size);
  if (name == "length") return Value::integer(size);
  if (name == "depth") return Value::integer(1);
  if (name == "depth0") return Value::integer(0);
  if (name == "previtem") return item_or_undefined(runtime, loop, index - 1);
  if (name == "nextitem") return item_or_undefined(runtime, loop, index + 1);
  return missing(value, name);
}

/// One character, or undefined; negative indices count from the end.
Value character_at(Runtime& runtime, const std::string& text, int64_t index) {
  runtime.step(1 + static_cast<int64_t>(text.size() / 16));
  const auto all = characters(text);
  if (index < 0) index += std::ssize(all);
  if (index < 0 || index >= std::ssize(all)) return Value::undefined("string index out of range");
  return runtime.text(std::string(all[index]));
}

}  // namespace

Value get_attribute(Runtime& runtime, const Value& value, std::string_view name) {
  if (const auto* undefined = value.get_if<Undefined>()) runtime.error("{}", *undefined->what);
  if (value.loop() != nullptr && value.loop()->ended) runtime.error("the loop has ended");
  if (has_method(value, name)) {
    return runtime.callable({Callable::Type::kMethod, std::string(name), value});
  }
  if (const Dict* dict = value.dict()) {
    if (const Value* found = dict->find(name)) return *found;
  }
  if (const Namespace* space = value.name_space()) {
    const auto found = space->attributes.find(name);
    if (found != space->attributes.end()) return found->second;
  }
  if (value.loop() != nullptr) return loop_attribute(runtime, value, name);
  return missing(value, name);
}

Value get_item(Runtime& runtime, const Value& value, const Value& key) {
  if (const auto* undefined = value.get_if<Undefined>()) runtime.error("{}", *undefined->what);
  if (const Dict* dict = value.dict()) {
    if (!key.is_string()) runtime.step(std::ssize(dict->entries));
    if (const Value* found = dict->find(key)) return *found;
  }
  if (key.is_integral() && value.is_string()) {
    return character_at(runtime, *value.string(), key.as_int());
  }
  const Sequence* sequence = value.sequence();
  if (key.is_integral() && sequence != nullptr && sequence->indexable()) {
    const auto size = std::ssize(sequence->items);
    const int64_t index = key.as_int() + (key.as_int() < 0 ? size : 0);
    if (index >= 0 && index < size) return sequence->items[index];
  }
  if (const std::string* name = key.string()) return get_attribute(runtime, value, *name);
  return missing(value, key.is_number() ? to_str(runtime, key) : std::string(key.type_name()));
}

namespace {

/// The indices of value[begin:end:step] in a sequence of `size`.
std::vector<int64_t> slice_indices(Runtime& runtime, const List& bounds, int64_t size) {
  const auto bound = [&](size_t i, int64_t absent) {
    if (bounds[i].is_none()) return absent;
    if (!bounds[i].is_integral())
      runtime.error("a slice needs integers, not {}", bounds[i].type_name());
    return bounds[i].as_int();
  };
  const int64_t step = bound(2, 1);
  if (step == 0) runtime.error("the step of a slice cannot be 0");
  const int64_t low = step > 0 ? 0 : -1;
  const int64_t high = step > 0 ? size : size - 1;
  const auto clamp = [&](size_t i, int64_t absent) {
    if (bounds[i].is_none()) return absent;
    const int64_t given = bound(i, 0);
    return std::clamp(given < 0 ? given + size : given, low, high);
  };
  const int64_t begin = clamp(0, step > 0 ? low : high);
  const int64_t end = clamp(1, step > 0 ? high : low);
  std::vector<int64_t> indices;
  // A step beyond the size visits one item; capping it keeps the sum from overflowing.
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  for (int64_t i = begin; step > 0 ? i < end : i > end; i += stride) indices.push_back(i);
  runtime.step(1 + std::ssize(indices) / 16);
  return indices;
}

}  // namespace

Value get_slice(Runtime& runtime, const Value& value, const List& bounds) {
  if (const auto* undefined = value.get_if<Undefined>()) runtime.error("{}", *undefined->what);
  if (const std::string* text = value.string()) {
    runtime.step(1 + static_cast<int64_t>(text->size() / 16));
    const auto all = characters(*text);
    std::string out;
    for (const int64_t i : slice_indices(runtime, bounds, std::ssize(all))) out += all[i];
    return runtime.text(std::move(out));
  }
  const Sequence* sequence = value.sequence();
  if (sequence == nullptr || !sequence->indexable()) {
    runtime.error("a {} cannot be sliced", value.type_name());
  }
  List items;
  for (const int64_t i : slice_indices(runtime, bounds, std::ssize(sequence->items))) {
    items.push_back(sequence->items[i]);
  }
  return runtime.list(std::move(items), sequence->form);
}

List iterate(Runtime& runtime, const Value& value) {
  List items;
  if (const std::string* text = value.string()) {
    for (const std::string_view c : characters(*text))
      items.push_back(runtime.text(std::string(c)));
  } else if (const Dict* dict = value.dict()) {
    for (const auto& [key, unused] : dict->entries) items.push_back(key);
  } else if (const Sequence* sequence = value.sequence()) {
    items.assign(sequence->items.begin() + static_cast<std::ptrdiff_t>(sequence->consumed),
                 sequence->items.end());
    if (sequence->form == Sequence::Form::kGenerator) sequence->consumed = sequence->items.size();
  } else if (!value.is_undefined()) {
    runtime.error("a {} cannot be iterated over", value.type_name());
  }
  runtime.step(1 + std::ssize(items) / 4);
  return items;
}

int64_t length(Runtime& runtime, const Value& value) {
  runtime.step();
  if (value.is_undefined()) return 0;
  if (const std::string* text = value.string()) return static_cast<int64_t>(character_count(*text));
  if (const Dict* dict = value.dict()) return std::ssize(dict->entries);
  const Sequence* sequence = value.sequence();
  if (sequence != nullptr && sequence->form != Sequence::Form::kGenerator) {
    return std::ssize(sequence->items);
  }
  if (value.loop() != nullptr) return std::ssize(value.loop()->items);
  runtime.error("a {} has no length", value.type_name());
}

}  // namespace nibble::jinja
