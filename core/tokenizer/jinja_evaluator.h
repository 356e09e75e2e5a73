#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/tokenizer/jinja_ast.h"
#include "core/tokenizer/jinja_runtime.h"

namespace nibble::jinja {

/// Variables of one scope. Names live in the template or in the evaluator's root.
struct Frame {
  Frame* parent = nullptr;
  std::map<std::string_view, Value> variables;
  bool captured = false;  ///< a macro was defined in it or below: it outlives its statement
};

/// Renders one parsed template once. Borrows the runtime and the template; both outlive it.
class Evaluator {
 public:
  Evaluator(Runtime& runtime, std::map<std::string_view, Value> variables);

  /// The output of `block`. Throws Error{kInvalidArgument} with the line.
  std::string render(const Block& block);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  class Scope;
  class Depth;

  Flow run(const Block& block);
  Flow run(const Statement& statement);
  Flow run_if(const Statement& statement);
  Flow run_for(const Statement& statement);
  List loop_items(const Statement& statement);
  void define_macro(const Statement& statement);
  /// The output of a body that runs in `scope`'s frame.
  std::string capture(const Block& body);
  void emit(std::string_view text);
  void assign(const Target& target, const Value& value);

  Value evaluate(const Expr& expr);
  Value evaluate_container(const Expr& expr);
  Value evaluate_compare(const Expr& expr);
  Value evaluate_concat(const Expr& expr);
  Value evaluate_filter(const Expr& expr, const Value* innermost);
  Value evaluate_call(const Expr& expr);
  Value call_macro(const Callable& callable, const Arguments& arguments);
  Arguments evaluate_arguments(const CallArguments& arguments);
  Value lookup(const std::string& name) const;

  Runtime& runtime_;
  Frame root_;
  Frame* frame_ = &root_;
  std::string* out_ = nullptr;
  int depth_ = 0;                             // of run() and evaluate() calls
  std::vector<std::unique_ptr<Frame>> kept_;  // captured frames of ended scopes
};

}  // namespace nibble::jinja
