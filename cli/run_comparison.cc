#include "cli/run_comparison.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>

namespace nibble {
namespace {

constexpr size_t kTailSteps = 20;
constexpr std::array kCompared = {
    "eval_reward_mean",      "reward_mean",          "eval_loss", "loss",    "kl_reference",
    "logprob_abs_diff_mean", "logprob_abs_diff_max", "grad_norm", "step_ms", "sync_bytes"};

std::map<double, double> finite_points(const MetricTable& table, const char* name) {
  std::map<double, double> points;
  const auto found = table.columns.find(name);
  if (found == table.columns.end()) return points;
  for (size_t i = 0; i < table.step.size(); ++i) {
    if (std::isfinite(found->second[i])) points[table.step[i]] = found->second[i];
  }
  return points;
}

std::optional<ComparedMetric> compare_metric(const char* name, const MetricTable& run,
                                             const MetricTable& baseline) {
  struct Pair {
    double step, ours, theirs;
  };
  std::vector<Pair> common;
  const auto theirs = finite_points(baseline, name);
  for (const auto& [step, value] : finite_points(run, name)) {
    const auto found = theirs.find(step);
    if (found != theirs.end()) common.push_back({step, value, found->second});
  }
  if (common.empty()) return std::nullopt;
  ComparedMetric metric{name};
  metric.first_step = static_cast<int64_t>(common.front().step);
  metric.last_step = static_cast<int64_t>(common.back().step);
  metric.common_steps = std::ssize(common);
  metric.last = common.back().ours;
  metric.baseline_last = common.back().theirs;
  const size_t tail = std::min(kTailSteps, common.size());
  for (size_t i = common.size() - tail; i < common.size(); ++i) {
    metric.mean += common[i].ours / static_cast<double>(tail);
    metric.baseline_mean += common[i].theirs / static_cast<double>(tail);
  }
  metric.tail_steps = static_cast<int64_t>(tail);
  return metric;
}

}  // namespace

std::vector<ComparedMetric> compare_metrics(const MetricTable& run, const MetricTable& baseline) {
  std::vector<ComparedMetric> metrics;
  for (const char* name : kCompared) {
    if (auto metric = compare_metric(name, run, baseline)) metrics.push_back(std::move(*metric));
  }
  return metrics;
}

RunComparison compare_runs(const std::filesystem::path& run,
                           const std::filesystem::path& baseline) {
  return {run, baseline, compare_metrics(read_run_metrics(run), read_run_metrics(baseline))};
}

}  // namespace nibble
