#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout/engine/head_examples.h"
#include "rollout/engine/hidden_states.h"
#include "rollout/engine/request.h"
#include "rollout/engine/step_plan.h"

namespace nibble {

/// A sample as a draft head sees it. Its input at position p is the token there and the model's
/// state of position p - 1.
struct HeadSample {
  GenerateRequest request;      ///< what its draws depend on
  std::vector<int32_t> tokens;  ///< the prompt and what was drawn
  int64_t prompt_tokens = 0;
  /// Of the prompt's last positions; shared with the samples of the same prompt. Null: unknown.
  std::shared_ptr<HiddenStates> prompt_states;
  HiddenStates states;  ///< of response positions
  int64_t lane = -1;    ///< its place in the cache; -1: none
  int64_t begin = 0;  ///< positions [begin, end) are in the cache, computed with the model's states
  int64_t end = 0;
  uint64_t asked_in = 0;  ///< the round that last asked for guesses

  HeadSample(int64_t width, StateCount& count) : states(width, count) {}
  int64_t num_tokens() const { return std::ssize(tokens); }
  /// The model's state of a position, or null.
  const float* state(int64_t position) const;
  /// Prepares for the next inputs: [end, num_tokens()). Where a state before them is missing, or
  /// they are more than `window`, the cache begins anew behind. False: there is nothing to go on
  /// from.
  bool find_inputs(int64_t window);
  int64_t num_behind() const { return num_tokens() - end; }
  /// The first of them were computed: states before these are not needed any more.
  void add_computed(int64_t inputs);
};

/// The samples of a draft head: the model's hidden states that it has not used yet, and places in a
/// cache of a fixed window of positions for each sample. Memory is bounded: states of at most
/// `window` positions of a sample, of `max_states()` in all; what is beyond is not kept, and
/// a sample without it gets no guesses until it has computed others. One thread.
class HeadSamples {
 public:
  struct Limits {
    int64_t hidden = 0;  ///< width of a state
    int64_t lanes = 0;   ///< samples with a place
    int64_t window = 0;  ///< positions that the head looks back on, its own included
    int64_t ahead = 0;   ///< guesses of a sample at most
  };
  explicit HeadSamples(const Limits& limits);

  void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
             std::span<const int32_t> drawn);
  void extend(uint64_t id, int32_t token);
  void end(uint64_t id);
  HeadSample& at(uint64_t id) { return *samples_.at(id); }

  /// Names the rows of a plan whose states are wanted.
  void ask(StepPlan& plan) const;
  /// Takes them, and hands those of responses on to `examples`, if not null.
  void observe(const StepPlan& plan, HeadExamples* examples);

  void begin_round(std::span<HeadSample* const> asking);
  /// A place in the cache; the sample that was not asked for the longest time gives way. False:
  /// all were asked for in this round.
  bool place(HeadSample& sample);

  /// Entries of the slot table that a token at `position` sees: the window, its own last.
  int64_t first_key(const HeadSample& sample, int64_t position) const;
  int32_t num_keys(const HeadSample& sample, int64_t position) const;
  int32_t slot(const HeadSample& sample, int64_t position) const {
    return static_cast<int32_t>(sample.lane * lane_slots() + position % lane_slots());
  }
  /// Cache slots of a lane: a ring, in which guesses overwrite nothing that is still looked at.
  int64_t lane_slots() const { return limits_.window + limits_.ahead; }
  const int32_t* slot_table() const { return slot_table_.data(); }
  int64_t table_entries() const { return std::ssize(slot_table_); }

  int64_t max_states() const { return 2 * limits_.lanes * limits_.window; }
  int64_t num_states() const { return count_.held; }
  int64_t num_placed() const { return num_placed_; }
  int64_t num_bytes() const;

 private:
  void displace(HeadSample& sample);
  bool lacks_prompt(const Sequence& member) const;
  bool wants(const StepPlan::Span& span, int64_t position) const;
  HiddenStates* prompt_states(const Group& group);
  void add(HiddenStates& states, int64_t position, const float* state) const;

  const Limits limits_;
  StateCount count_;  // before what counts there
  std::unordered_map<uint64_t, std::unique_ptr<HeadSample>> samples_;
  std::vector<HeadSample*> by_lane_;  // null: free
  std::vector<int32_t> slot_table_;   // of each lane its slots, twice: a window is a range of them
  uint64_t round_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_placed_ = 0;
};

}  // namespace nibble
