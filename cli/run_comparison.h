#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/metric_rows.h"

namespace nibble {

/// A figure of two runs over the steps in which both have it.
struct ComparedMetric {
  std::string name;
  int64_t first_step = 0, last_step = 0;  ///< of the common ones
  int64_t common_steps = 0;               ///< at least 1
  double last = 0.0, baseline_last = 0.0;
  int64_t tail_steps = 0;  ///< last common ones that the means are of
  double mean = 0.0, baseline_mean = 0.0;
};

/// One run beside another.
struct RunComparison {
  std::filesystem::path run;
  std::filesystem::path baseline;
  std::vector<ComparedMetric> metrics;  ///< those that both have in a common step, in fixed order
};

/// Reward, loss, KL to the reference, gap between trainer and rollout, gradient norm, time of a
/// step and published bytes of two runs; means are of the last 20 common steps.
RunComparison compare_runs(const std::filesystem::path& run, const std::filesystem::path& baseline);

/// Pure part of compare_runs().
std::vector<ComparedMetric> compare_metrics(const MetricTable& run, const MetricTable& baseline);

}  // namespace nibble
