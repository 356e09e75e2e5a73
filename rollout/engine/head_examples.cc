#include "rollout/engine/head_examples.h"

#include <algorithm>
#include <utility>

#include "core/base/fail.h"

namespace nibble {

HeadExamples::HeadExamples(int64_t hidden, int64_t max_inputs, int64_t example_inputs)
    : hidden_(hidden), max_inputs_(max_inputs), example_inputs_(example_inputs) {
  NIBBLE_CHECK(example_inputs >= 1 && max_inputs >= example_inputs,
               "room for {} inputs, examples of {}", max_inputs, example_inputs);
}

bool HeadExamples::has_room() {
  while (num_inputs_ + open_count_.held >= max_inputs_ && !done_.empty()) {
    num_inputs_ -= done_.front().num_inputs();
    done_.pop_front();
  }
  return num_inputs_ + open_count_.held < max_inputs_;
}

void HeadExamples::add(uint64_t id, int64_t position, const float* state,
                       std::span<const int32_t> tokens) {
  if (!has_room()) return;
  auto& states = open_[id];
  if (states == nullptr) states = std::make_unique<HiddenStates>(hidden_, open_count_);
  // Complete once the last of its targets is known.
  const bool is_next = position == states->end();
  if (is_next && states->size() >= example_inputs_) close(*states, tokens);
  states->add(position, state);
}

void HeadExamples::end(uint64_t id, std::span<const int32_t> tokens) {
  const auto found = open_.find(id);
  if (found == open_.end()) return;
  close(*found->second, tokens);
  open_.erase(found);
}

// The state of position p goes with the token of p + 1 as input and that of p + 2 as target.
void HeadExamples::close(HiddenStates& states, std::span<const int32_t> tokens) {
  const int64_t first = states.begin();
  const int64_t count = std::min(states.size(), std::ssize(tokens) - 2 - first);
  if (count >= 1) {
    HeadExample example;
    const auto begin = tokens.begin() + first + 1;
    example.tokens.assign(begin, begin + count + 1);
    example.states.assign(states.at(first), states.at(first) + count * hidden_);
    done_.push_back(std::move(example));
    num_inputs_ += count;
    num_added_ += count;
  }
  states.clear();
}

int64_t HeadExamples::num_bytes() const {
  return 4 * ((num_inputs_ + open_count_.held) * hidden_ + num_inputs_ + std::ssize(done_));
}

}  // namespace nibble
