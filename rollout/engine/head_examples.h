#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout/engine/hidden_states.h"

namespace nibble {

/// Some consecutive inputs of a draft head, and what followed each.
struct HeadExample {
  std::vector<int32_t> tokens;  ///< [n + 1]: input i is token i, its target token i + 1
  std::vector<float> states;    ///< [n, hidden]: of the model, at the position before each input
  int64_t num_inputs() const { return std::ssize(tokens) - 1; }
};

/// What a draft head can learn from: recent tokens of samples with the model's states. Memory is
/// bounded; the oldest give way, and where there are none, the newest are not taken. One thread.
class HeadExamples {
 public:
  ///   max_inputs      held at a time
  ///   example_inputs  at which a piece of a sample is complete
  HeadExamples(int64_t hidden, int64_t max_inputs, int64_t example_inputs);

  /// The model's state at a position of a sample, whose tokens so far are given.
  void add(uint64_t id, int64_t position, const float* state, std::span<const int32_t> tokens);
  /// The sample ends.
  void end(uint64_t id, std::span<const int32_t> tokens);

  const std::deque<HeadExample>& all() const { return done_; }
  int64_t num_inputs() const { return num_inputs_; }  ///< of all()
  int64_t num_added() const { return num_added_; }    ///< inputs that ever came into all()
  int64_t max_inputs() const { return max_inputs_; }
  int64_t num_bytes() const;

 private:
  void close(HiddenStates& states, std::span<const int32_t> tokens);
  bool has_room();

  const int64_t hidden_;
  const int64_t max_inputs_;
  const int64_t example_inputs_;
  StateCount open_count_;  // before what counts there
  std::unordered_map<uint64_t, std::unique_ptr<HiddenStates>> open_;
  std::deque<HeadExample> done_;
  int64_t num_inputs_ = 0;
  int64_t num_added_ = 0;
};

}  // namespace nibble
