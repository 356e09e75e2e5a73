#include "core/tokenizer/jinja_methods.h"

#include <algorithm>
#include <array>

#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_string_methods.h"
#include "core/tokenizer/jinja_text.h"

namespace nibble::jinja {
namespace {

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Value dict_method(Runtime& runtime, const Callable& method, const Arguments& arguments) {
  const Dict& dict = *method.receiver.dict();
  if (method.name == "get") {
    const BoundArguments bound(runtime, "get", arguments, {"key", "default"}, 1);
    runtime.step(bound.at(0).is_string() ? 1 : std::ssize(dict.entries));
    if (const Value* found = dict.find(bound.at(0))) return *found;
    return bound.has(1) ? bound.at(1) : Value();
  }
  const BoundArguments none(runtime, method.name, arguments, {});
  if (method.name == "copy") return method.receiver;  // values never change
  List items;
  for (const auto& [key, value] : dict.entries) {
    if (method.name == "keys") {
      items.push_back(key);
    } else if (method.name == "values") {
      items.push_back(value);
    } else {
      items.push_back(runtime.tuple({key, value}));
    }
  }
  return runtime.list(std::move(items), Sequence::Form::kView);
}

Value list_method(Runtime& runtime, const Callable& method, const Arguments& arguments) {
  const List& items = method.receiver.sequence()->items;
  if (method.name == "copy") {
    const BoundArguments none(runtime, "copy", arguments, {});
    return method.receiver;
  }
  const BoundArguments bound(runtime, method.name, arguments, {"value"}, 1);
  int64_t count = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!equal(runtime, items[i], bound.at(0))) continue;
    if (method.name == "index") return Value::integer(static_cast<int64_t>(i));
    ++count;
  }
  if (method.name == "index") runtime.error("index: the value is not in the list");
  return Value::integer(count);
}

Value loop_method(Runtime& runtime, const Callable& method, const Arguments& arguments) {
  LoopState& loop = *method.receiver.loop();
  if (loop.ended) runtime.error("the loop has ended");
  const List& given = arguments.positional;
  if (method.name == "cycle") {
    if (given.empty()) runtime.error("loop.cycle needs items");
    return given[loop.index % given.size()];
  }
  bool same = loop.ever_changed && given.size() == loop.last_changed.size();
  for (size_t i = 0; same && i < given.size(); ++i) {
    same = equal(runtime, given[i], loop.last_changed[i]);
  }
  loop.last_changed = given;
  loop.ever_changed = true;
  return Value::boolean(!same);
}

}  // namespace

bool has_method(const Value& value, std::string_view name) {
  if (value.is_string()) return find_string_method(name) != nullptr;
  if (value.dict() != nullptr) return is_one_of(name, {"get", "items", "keys", "values", "copy"});
  if (const Sequence* sequence = value.sequence()) {
    if (sequence->form == Sequence::Form::kList && name == "copy") return true;
    return sequence->indexable() && is_one_of(name, {"index", "count"});
  }
  return value.loop() != nullptr && is_one_of(name, {"cycle", "changed"});
}

Value call_method(Runtime& runtime, const Callable& method, const Arguments& arguments) {
  const Value& self = method.receiver;
  if (const std::string* text = self.string()) {
    return find_string_method(method.name)(runtime, *text, arguments);
  }
  if (self.dict() != nullptr) return dict_method(runtime, method, arguments);
  if (self.sequence() != nullptr) return list_method(runtime, method, arguments);
  return loop_method(runtime, method, arguments);
}

namespace {

Value make_range(Runtime& runtime, const Arguments& arguments) {
  const BoundArguments bound(runtime, "range", arguments, {"start", "stop", "step"}, 1);
  const bool only_stop = !bound.has(1);
  const int64_t begin = only_stop ? 0 : bound.integer(0, 0);
  const int64_t end = bound.integer(only_stop ? 0 : 1, 0);
  const int64_t step = bound.integer(2, 1);
  if (step == 0) runtime.error("range: the step cannot be 0");
  List items;
  int64_t at = begin;
  while (step > 0 ? at < end : at > end) {
    if (std::ssize(items) >= runtime.limits.range_items) {
      runtime.error("range has more than {} items", runtime.limits.range_items);
    }
    items.push_back(Value::integer(at));
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  runtime.step(1 + std::ssize(items));
  return runtime.list(std::move(items), Sequence::Form::kRange);
}

Value make_dict(Runtime& runtime, const Arguments& arguments) {
  Dict dict;
  if (arguments.positional.size() > 1) runtime.error("dict takes at most one mapping");
  for (const Value& base : arguments.positional) {
    if (base.dict() == nullptr) runtime.error("dict needs a mapping, not {}", base.type_name());
    dict = *base.dict();
  }
  for (const auto& [name, value] : arguments.keywords) dict.set(runtime.text(name), value);
  return runtime.dict(std::move(dict));
}

Value make_namespace(Runtime& runtime, const Arguments& arguments) {
  Value made = runtime.make_namespace();
  const Value initial = make_dict(runtime, arguments);
  for (const auto& [key, value] : initial.dict()->entries) {
    if (!key.is_string()) runtime.error("namespace needs names, not {}", key.type_name());
    made.name_space()->attributes[*key.string()] = value;
  }
  return made;
}

Value format_time(Runtime& runtime, const Arguments& arguments) {
  const BoundArguments bound(runtime, "strftime_now", arguments, {"format"}, 1);
  std::tm now{};
  if (runtime.now) {
    now = *runtime.now;
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &now);
  }
  const std::string& format = bound.text(0);
  if (format.size() > 256) runtime.error("strftime_now: the format has more than 256 bytes");
  if (format.empty()) return runtime.text("");
  std::array<char, 8192> buffer;
  const size_t size = std::strftime(buffer.data(), buffer.size(), format.c_str(), &now);
  if (size == 0) runtime.error("strftime_now: the format gives no text");
  return runtime.text(std::string(buffer.data(), size));
}

Value raise_exception(Runtime& runtime, const Arguments& arguments) {
  const BoundArguments bound(runtime, "raise_exception", arguments, {"message"}, 1);
  runtime.error("{}", to_str(runtime, bound.at(0)));
}

}  // namespace

bool is_function(std::string_view name) {
  return is_one_of(name, {"range", "dict", "namespace", "raise_exception", "strftime_now"});
}

Value call_function(Runtime& runtime, std::string_view name, const Arguments& arguments) {
  if (name == "range") return make_range(runtime, arguments);
  if (name == "dict") return make_dict(runtime, arguments);
  if (name == "namespace") return make_namespace(runtime, arguments);
  if (name == "strftime_now") return format_time(runtime, arguments);
  return raise_exception(runtime, arguments);
}

}  // namespace nibble::jinja
