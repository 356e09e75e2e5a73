#include "cli/eval_stats.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/base/fail.h"

namespace nibble {
namespace {

std::vector<int64_t> ks_up_to(int64_t samples) {
  std::vector<int64_t> ks;
  for (int64_t k = 1; k < samples; k *= 2) ks.push_back(k);
  ks.push_back(samples);
  return ks;
}

int64_t count_correct(const std::vector<double>& rewards) {
  return std::count_if(rewards.begin(), rewards.end(), [](double r) { return r >= 1.0; });
}

}  // namespace

double pass_at_k(int64_t n, int64_t correct, int64_t k) {
  NIBBLE_CHECK(k >= 1 && k <= n && correct >= 0 && correct <= n, "pass@{} of {} in {}", k, correct,
               n);
  if (n - correct < k) return 1.0;
  double none = 1.0;  // C(n - correct, k) / C(n, k)
  for (int64_t i = n - correct + 1; i <= n; ++i) {
    none *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  }
  return 1.0 - none;
}

EvalStats summarize_rewards(const std::vector<std::vector<double>>& rewards, int64_t samples) {
  EvalStats stats;
  stats.prompts = std::ssize(rewards);
  double sum = 0.0;
  double squares = 0.0;
  int64_t counted = 0;
  for (const std::vector<double>& of_prompt : rewards) {
    stats.scored += std::ssize(of_prompt);
    stats.unscored += samples - std::ssize(of_prompt);
    if (of_prompt.empty()) continue;
    double mean = 0.0;
    for (const double reward : of_prompt) mean += reward;
    mean /= static_cast<double>(of_prompt.size());
    sum += mean;
    squares += mean * mean;
    ++counted;
  }
  if (counted > 0) stats.average = sum / static_cast<double>(counted);
  if (counted > 1) {
    const auto n = static_cast<double>(counted);
    const double variance = std::max(0.0, squares - n * stats.average * stats.average) / (n - 1.0);
    stats.standard_error = std::sqrt(variance / n);
  }
  for (const int64_t k : ks_up_to(samples)) {
    double pass = 0.0;
    int64_t able = 0;
    for (const std::vector<double>& of_prompt : rewards) {
      if (std::ssize(of_prompt) < k) continue;
      pass += pass_at_k(std::ssize(of_prompt), count_correct(of_prompt), k);
      ++able;
    }
    if (able > 0) stats.pass.emplace_back(k, pass / static_cast<double>(able));
  }
  return stats;
}

MacroStats macro_average(const std::vector<EvalStats>& sets) {
  MacroStats macro;
  if (sets.empty()) return macro;
  const auto n = static_cast<double>(sets.size());
  double variance = 0.0;
  std::map<int64_t, std::pair<int64_t, double>> pass;  // k -> sets that have it, sum
  for (const EvalStats& stats : sets) {
    macro.average += stats.average / n;
    variance += stats.standard_error * stats.standard_error;
    for (const auto& [k, value] : stats.pass) {
      ++pass[k].first;
      pass[k].second += value;
    }
  }
  macro.standard_error = std::sqrt(variance) / n;
  for (const auto& [k, counted] : pass) {
    if (counted.first == std::ssize(sets)) macro.pass.emplace_back(k, counted.second / n);
  }
  return macro;
}

}  // namespace nibble
