#pragma once

#include <cstdint>
#include <vector>

#include "rollout/engine/sampler.h"
#include "rollout/engine/sequence.h"

namespace nibble {

/// Tokens of one step and what becomes of them. Vectors keep their memory from step to step.
struct StepPlan {
  // One entry a token; see ArenaStep and kernels::KeyIndex.
  std::vector<int32_t> tokens;
  std::vector<int32_t> position;
  std::vector<int32_t> slot;
  std::vector<int64_t> first;
  std::vector<int32_t> count;
  std::vector<float> joined;  ///< of a draft head's tokens: ArenaStep::joined

  /// Consecutive tokens of one owner: a chunk of a group's prompt or of a sequence's response.
  struct Span {
    Group* group = nullptr;
    Sequence* sequence = nullptr;  ///< null: a prompt chunk
    int64_t row = 0;
    int64_t num_tokens = 0;
    /// How many of them come to stay: all but guessed ones that were not drawn. Known after
    /// Scheduler::accept().
    int64_t num_kept = 0;
    size_t first_draw = 0;  ///< of `num_draws`: one a token for a decode, with guesses behind it
    size_t num_draws = 0;
    bool is_decode = false;
  };
  std::vector<Span> spans;
  std::vector<Draw> draws;         ///< in rising order of row
  std::vector<Sequence*> drawers;  ///< whose token each draw is
  std::vector<int> guess_kind;  ///< DraftPolicy kind of the guess that each draw is behind; or -1

  std::vector<int32_t> hidden_rows;  ///< rows whose final hidden states are wanted
  std::vector<float> hidden;         ///< these, once the step is computed: [hidden_rows, hidden]

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  void clear();
};

}  // namespace nibble
