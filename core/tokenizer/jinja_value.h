#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::jinja {

class Value;
using List = std::vector<Value>;
struct Sequence;
struct Dict;
struct Namespace;
struct Callable;
struct LoopState;

/// A name, key or attribute that does not exist; `what` says so in messages.
struct Undefined {
  std::shared_ptr<const std::string> what;  // shared: values are copied freely
};

/// One Python value as templates see it. Contents are immutable once made and shared between
/// copies; only namespaces change. Made through Runtime, which counts their bytes and depth.
class Value {
 public:
  using None = std::monostate;
  using Text = std::shared_ptr<const std::string>;
  using Data =
      std::variant<None, Undefined, bool, int64_t, double, Text, std::shared_ptr<const Sequence>,
                   std::shared_ptr<const Dict>, Namespace*, std::shared_ptr<const Callable>,
                   std::shared_ptr<LoopState>>;

  Value() = default;  ///< None
  Value(Data data) : data_(std::move(data)) {}
  static Value boolean(bool value) { return Value(Data(value)); }
  static Value integer(int64_t value) { return Value(Data(value)); }
  static Value number(double value) { return Value(Data(value)); }
  static Value undefined(std::string what) {
    return Value(Data(Undefined{std::make_shared<const std::string>(std::move(what))}));
  }

  template <typename T>
  const T* get_if() const {
    return std::get_if<T>(&data_);
  }
  bool is_none() const { return get_if<None>() != nullptr; }
  bool is_undefined() const { return get_if<Undefined>() != nullptr; }
  bool is_bool() const { return get_if<bool>() != nullptr; }
  bool is_int() const { return get_if<int64_t>() != nullptr; }  ///< not bool
  bool is_float() const { return get_if<double>() != nullptr; }
  bool is_integral() const { return is_int() || is_bool(); }  ///< Python's int, bool included
  bool is_number() const { return is_integral() || is_float(); }
  bool is_string() const { return get_if<Text>() != nullptr; }

  /// The content, or null if the value is of another kind.
  const std::string* string() const;
  const Sequence* sequence() const;
  const Dict* dict() const;
  Namespace* name_space() const;
  const Callable* callable() const;
  LoopState* loop() const;

  /// Of an integral value.
  int64_t as_int() const;
  /// Of any number.
  double as_double() const;
  bool truthy() const;
  /// Levels of containers inside; 0 for what holds no values.
  int depth() const;
  /// Python's name of the type, for messages: "str", "list", ...
  std::string_view type_name() const;

 private:
  Data data_;
};

/// What is iterated in order. Generators are used up by iterating and are always true; only lists
/// and tuples have a text.
struct Sequence {
  enum class Form { kList, kTuple, kRange, kView, kGenerator };
  /// Whether items can be picked by number.
  bool indexable() const { return form != Form::kView && form != Form::kGenerator; }
  bool printable() const { return form == Form::kList || form == Form::kTuple; }
  Form form = Form::kList;
  List items;
  int depth = 1;
  mutable size_t consumed = 0;  ///< generators only
};

/// A mapping in insertion order. Keys are None, booleans, numbers or strings.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  std::unordered_map<std::string_view, size_t> by_text;  ///< entries whose key is a string
  int depth = 1;

  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
  /// Adds or replaces.
  void set(Value key, Value value);
};

/// namespace(): the only thing a template can change. Owned by the Runtime.
struct Namespace {
  std::map<std::string, Value, std::less<>> attributes;
};

struct Statement;
struct Frame;

/// What can be called.
struct Callable {
  enum class Type { kFunction, kMethod, kMacro };
  Type type = Type::kFunction;
  std::string name;
  Value receiver;                    ///< kMethod
  const Statement* macro = nullptr;  ///< kMacro: lives as long as the template
  Frame* frame = nullptr;            ///< kMacro: where it was defined; kept by the evaluator
};

/// The variable `loop`. Emptied when its loop ends, so that kept ones cannot form chains or cycles.
struct LoopState {
  List items;
  size_t index = 0;
  List last_changed;  ///< arguments of the last loop.changed()
  bool ever_changed = false;
  bool ended = false;
};

/// Python's == of None, booleans, numbers and strings; false for anything else.
bool equal_scalars(const Value& a, const Value& b);

}  // namespace nibble::jinja
