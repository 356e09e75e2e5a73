#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace nibble {

/// The chance that at least one of k samples, drawn without replacement from n of which `correct`
/// are right, is right: the unbiased estimate of pass@k. Wants 1 <= k <= n, 0 <= correct <= n.
double pass_at_k(int64_t n, int64_t correct, int64_t k);

/// A model's marks on a data set.
struct EvalStats {
  int64_t prompts = 0;
  int64_t scored = 0;           ///< samples
  int64_t unscored = 0;         ///< samples that the reward could not score; they count nowhere
  double average = 0.0;         ///< avg@K: mean over prompts of the mean reward of their samples
  double standard_error = 0.0;  ///< of the average, over prompts; 0 for one prompt
  /// (k, pass@k) for k = 1, 2, 4, ... and K, over prompts with at least k scored samples; a sample
  /// passes with a reward of 1 or more.
  std::vector<std::pair<int64_t, double>> pass;
};

/// From the rewards of each prompt's scored samples (at most `samples` each).
EvalStats summarize_rewards(const std::vector<std::vector<double>>& rewards, int64_t samples);

/// The mean over data sets, each with the same weight.
struct MacroStats {
  double average = 0.0;
  double standard_error = 0.0;                   ///< from those of the sets
  std::vector<std::pair<int64_t, double>> pass;  ///< for every k that all sets have
};
MacroStats macro_average(const std::vector<EvalStats>& sets);

}  // namespace nibble
