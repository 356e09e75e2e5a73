#pragma once

#include <fmt/format.h>

#include <ctime>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tokenizer/jinja_value.h"

namespace nibble::jinja {

/// What one rendering may use. Exceeding any of them is an error, never a truncation.
struct Limits {
  int64_t steps = 20'000'000;       ///< evaluated nodes, iterations, scanned elements
  int64_t value_bytes = 512 << 20;  ///< strings and containers made, in all
  size_t text_bytes = 32 << 20;     ///< one string, and the output
  int nesting = 256;                ///< values inside values
  int call_depth = 600;             ///< evaluator recursion, macros included
  int64_t range_items = 100'000;    ///< as in Jinja's sandbox
};

/// Shared by everything that computes during one rendering: limits, the current line, storage of
/// namespaces. One thread.
class Runtime {
 public:
  Runtime(std::string_view name, const Limits& limits) : limits(limits), name_(name) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  /// Throws Error{kInvalidArgument} "<template> line <n>: <message>".
  template <typename... Args>
  [[noreturn]] void error(fmt::format_string<Args...> format, Args&&... args) const {
    throw_error(fmt::format(format, std::forward<Args>(args)...));
  }

  /// Counts work in the order of `count` elementary steps.
  void step(int64_t count = 1) {
    steps_ += count;
    if (steps_ > limits.steps) throw_too_long();
  }

  /// Values; they count their bytes, and fail when too large or nested too deep.
  Value text(std::string text);
  Value list(List items, Sequence::Form form = Sequence::Form::kList);
  Value tuple(List items) { return list(std::move(items), Sequence::Form::kTuple); }
  Value generator(List items) { return list(std::move(items), Sequence::Form::kGenerator); }
  Value dict(Dict dict);
  Value callable(Callable callable);
  Value make_namespace();

  /// Fails unless another `bytes` may be added to a string of `size` bytes.
  void check_text_size(size_t size, size_t bytes) const;

  int line = 0;  ///< of the node being evaluated
  const Limits limits;
  std::optional<std::tm> now;  ///< of strftime_now; nullopt: the machine's local time

 private:
  [[noreturn]] void throw_error(const std::string& message) const;
  [[noreturn]] void throw_too_long() const;
  void charge(size_t bytes, int depth);

  std::string_view name_;
  int64_t steps_ = 0;
  int64_t value_bytes_ = 0;
  std::deque<Namespace> namespaces_;
};

/// Arguments of a call, a filter or a test.
struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

/// Arguments matched to parameter names.
class BoundArguments {
 public:
  /// Fails on too many, unknown, doubled or missing (the first `required`) arguments.
  BoundArguments(const Runtime& runtime, std::string_view what, const Arguments& arguments,
                 std::initializer_list<std::string_view> names, size_t required = 0);
  bool has(size_t index) const { return values_[index] != nullptr; }
  const Value& at(size_t index) const { return *values_[index]; }
  /// `at`, or `absent` where not given or None.
  int64_t integer(size_t index, int64_t absent) const;
  bool truthy(size_t index, bool absent) const { return has(index) ? at(index).truthy() : absent; }
  /// Fails unless a string.
  const std::string& text(size_t index) const;

 private:
  const Runtime& runtime_;
  std::string_view what_;
  std::vector<const Value*> values_;
};

}  // namespace nibble::jinja
