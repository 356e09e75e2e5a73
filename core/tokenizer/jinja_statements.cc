// The part of the evaluator that runs statements.
#include "core/base/fail.h"
#include "core/tokenizer/jinja_evaluator.h"
#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_scope.h"
#include "core/tokenizer/jinja_text.h"

namespace nibble::jinja {
namespace {

/// Sends output elsewhere for the length of a C++ scope.
class Redirect {
 public:
  Redirect(std::string*& out, std::string& to) : out_(out), outer_(std::exchange(out, &to)) {}
  Redirect(const Redirect&) = delete;
  Redirect& operator=(const Redirect&) = delete;
  ~Redirect() { out_ = outer_; }

 private:
  std::string*& out_;
  std::string* outer_;
};

/// Empties a loop's state when the loop ends, however it ends.
class LoopEnd {
 public:
  explicit LoopEnd(LoopState& loop) : loop_(loop) {}
  LoopEnd(const LoopEnd&) = delete;
  LoopEnd& operator=(const LoopEnd&) = delete;
  ~LoopEnd() {
    loop_.ended = true;
    loop_.items.clear();
    loop_.last_changed.clear();
  }

 private:
  LoopState& loop_;
};

}  // namespace

Evaluator::Evaluator(Runtime& runtime, std::map<std::string_view, Value> variables)
    : runtime_(runtime) {
  root_.variables = std::move(variables);
}

std::string Evaluator::render(const Block& block) { return capture(block); }

std::string Evaluator::capture(const Block& body) {
  std::string text;
  const Redirect redirect(out_, text);
  run(body);
  return text;
}

void Evaluator::emit(std::string_view text) {
  runtime_.check_text_size(out_->size(), text.size());
  *out_ += text;
}

Evaluator::Flow Evaluator::run(const Block& block) {
  for (const Statement& statement : block) {
    const Flow flow = run(statement);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Evaluator::Flow Evaluator::run(const Statement& statement) {
  const Depth guard(*this, statement.line);
  switch (statement.kind) {
    case Statement::Kind::kData:
      emit(statement.text);
      return Flow::kNormal;
    case Statement::Kind::kPrint: {
      const Value value = evaluate(*statement.value);
      runtime_.line = statement.line;
      emit(to_str(runtime_, value));
      return Flow::kNormal;
    }
    case Statement::Kind::kIf:
      return run_if(statement);
    case Statement::Kind::kFor:
      return run_for(statement);
    case Statement::Kind::kSet:
      assign(statement.target, evaluate(*statement.value));
      return Flow::kNormal;
    case Statement::Kind::kSetBlock:
    case Statement::Kind::kFilter: {
      Value value;
      {
        const Scope scope(*this, frame_);
        value = runtime_.text(capture(statement.body));
      }
      if (statement.value != nullptr) value = evaluate_filter(*statement.value, &value);
      if (statement.kind == Statement::Kind::kFilter) {
        emit(to_str(runtime_, value));
      } else {
        assign(statement.target, value);
      }
      return Flow::kNormal;
    }
    case Statement::Kind::kMacro:
      define_macro(statement);
      return Flow::kNormal;
    case Statement::Kind::kScope: {
      List values;
      for (const Parameter& parameter : statement.parameters) {
        values.push_back(evaluate(*parameter.absent));
      }
      const Scope scope(*this, frame_);
      for (size_t i = 0; i < values.size(); ++i) {
        frame_->variables[statement.parameters[i].name] = values[i];
      }
      return run(statement.body);
    }
    case Statement::Kind::kBreak:
      return Flow::kBreak;
    case Statement::Kind::kContinue:
      return Flow::kContinue;
  }
  NIBBLE_CHECK(false, "unknown statement kind {}", static_cast<int>(statement.kind));
}

Evaluator::Flow Evaluator::run_if(const Statement& statement) {
  for (const Branch& branch : statement.branches) {
    if (branch.condition == nullptr || evaluate(*branch.condition).truthy()) {
      return run(branch.body);
    }
  }
  return Flow::kNormal;
}

List Evaluator::loop_items(const Statement& statement) {
  List items = iterate(runtime_, evaluate(*statement.value));
  if (statement.condition == nullptr) return items;
  List kept;
  for (Value& item : items) {
    const Scope scope(*this, frame_);
    assign(statement.target, item);
    if (evaluate(*statement.condition).truthy()) kept.push_back(std::move(item));
  }
  return kept;
}

Evaluator::Flow Evaluator::run_for(const Statement& statement) {
  const auto loop = std::make_shared<LoopState>();  // shared: `loop` is a value like any other
  const LoopEnd end(*loop);
  loop->items = loop_items(statement);
  bool any_completed = false;  // as in Jinja: else also runs when break or continue cut all short
  for (; loop->index < loop->items.size(); ++loop->index) {
    runtime_.step();
    const Scope scope(*this, frame_);
    frame_->variables["loop"] = Value(Value::Data(loop));
    assign(statement.target, loop->items[loop->index]);
    const Flow flow = run(statement.body);
    any_completed = any_completed || flow == Flow::kNormal;
    if (flow == Flow::kBreak) break;
  }
  if (any_completed || statement.otherwise.empty()) return Flow::kNormal;
  const Scope scope(*this, frame_);
  return run(statement.otherwise);
}

void Evaluator::define_macro(const Statement& statement) {
  Callable callable{Callable::Type::kMacro, statement.text, Value()};
  callable.macro = &statement;
  callable.frame = frame_;
  frame_->variables[statement.text] = runtime_.callable(std::move(callable));
  for (Frame* frame = frame_; frame != nullptr && !frame->captured; frame = frame->parent) {
    frame->captured = true;
  }
}

void Evaluator::assign(const Target& target, const Value& value) {
  if (!target.items.empty()) {
    const List items = iterate(runtime_, value);
    if (items.size() != target.items.size()) {
      runtime_.error("cannot unpack {} values into {} names", items.size(), target.items.size());
    }
    for (size_t i = 0; i < items.size(); ++i) assign(target.items[i], items[i]);
    return;
  }
  if (target.attribute.empty()) {
    frame_->variables[target.name] = value;
    return;
  }
  Namespace* space = lookup(target.name).name_space();
  if (space == nullptr) {
    runtime_.error("cannot assign to '{}.{}': '{}' is not a namespace", target.name,
                   target.attribute, target.name);
  }
  space->attributes[target.attribute] = value;
}

}  // namespace nibble::jinja
