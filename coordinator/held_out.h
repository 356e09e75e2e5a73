#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "coordinator/run_config.h"

namespace nibble {

/// A held-out data set and how an evaluation samples it.
struct HeldOutSet {
  std::string name;  ///< in the metrics' names; empty: it is the only one (eval.data)
  std::filesystem::path data;
  int64_t samples = 1;  ///< of each prompt
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = 0;
  int64_t max_new_tokens = 1;

  /// Of one of its figures: "eval_math_reward_mean".
  std::string metric(const std::string& figure) const { return "eval_" + name + "_" + figure; }
};

/// The sets of `eval` in order, none if nothing is evaluated. What a set leaves out is as `eval`
/// says, and `max_new_tokens` that of training.
std::vector<HeldOutSet> held_out_sets(const EvalSection& eval, int64_t max_new_tokens);

/// What is wrong with the sets of `eval` as a whole: "key: what"; empty: nothing.
std::string held_out_problem(const EvalSection& eval);

}  // namespace nibble
