#pragma once

#include <memory>
#include <utility>

#include "core/tokenizer/jinja_evaluator.h"

namespace nibble::jinja {

/// Enters a fresh frame below `parent` and leaves it at the end of the C++ scope. For the
/// evaluator's own files.
class Evaluator::Scope {
 public:
  Scope(Evaluator& evaluator, Frame* parent)
      : evaluator_(evaluator), outer_(evaluator.frame_), frame_(std::make_unique<Frame>()) {
    frame_->parent = parent;
    evaluator_.frame_ = frame_.get();
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() {
    evaluator_.frame_ = outer_;
    if (frame_->captured) evaluator_.kept_.push_back(std::move(frame_));
  }

 private:
  Evaluator& evaluator_;
  Frame* outer_;
  std::unique_ptr<Frame> frame_;
};

/// Counts one node of work and one level of recursion, and sets the line.
class Evaluator::Depth {
 public:
  Depth(Evaluator& evaluator, int line) : evaluator_(evaluator) {
    Runtime& runtime = evaluator.runtime_;
    runtime.line = line;
    runtime.step();
    if (evaluator.depth_ >= runtime.limits.call_depth) {
      runtime.error("calls are nested deeper than {}", runtime.limits.call_depth);
    }
    ++evaluator.depth_;
  }
  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;
  ~Depth() { --evaluator_.depth_; }

 private:
  Evaluator& evaluator_;
};

}  // namespace nibble::jinja
