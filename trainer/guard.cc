#include "trainer/guard.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

namespace nibble {

std::string_view guard_watch_name(GuardWatch watch) {
  constexpr std::array<std::string_view, 5> kNames = {"nonfinite", "grad_norm", "kl", "gap",
                                                      "critic_nonfinite"};
  return kNames[static_cast<size_t>(watch)];
}

std::optional<GuardTrip> Guard::check(const GuardFigures& figures) const {
  std::optional<GuardTrip> worst;
  const auto pass = [&](GuardWatch watch, GuardAction action, double value, double limit) {
    if (worst && worst->action >= action) return;
    worst = GuardTrip{watch, action, value, limit};
  };
  for (const double value :
       {figures.loss, figures.grad_norm, figures.gap, figures.kl.value_or(0.0)}) {
    if (!std::isfinite(value)) pass(GuardWatch::kNonfinite, config_.nonfinite, value, 0.0);
  }
  for (const double value : {figures.value_loss, figures.critic_grad_norm}) {
    if (!std::isfinite(value)) pass(GuardWatch::kCriticNonfinite, config_.nonfinite, value, 0.0);
  }
  // A limit that is not passed by what is not finite was passed above.
  const auto watch = [&](GuardWatch what, GuardAction action, double value, double limit) {
    if (limit > 0.0 && value > limit) pass(what, action, value, limit);
  };
  if (norms_.size() >= kFewest) {
    const double mean =
        std::accumulate(norms_.begin(), norms_.end(), 0.0) / static_cast<double>(norms_.size());
    watch(GuardWatch::kGradNorm, config_.grad_norm_action, figures.grad_norm,
          config_.grad_norm_factor * mean);
  }
  watch(GuardWatch::kKl, config_.kl_action, figures.kl.value_or(0.0), config_.max_kl);
  watch(GuardWatch::kGap, config_.gap_action, figures.gap, config_.max_gap);
  return worst;
}

void Guard::note(double grad_norm) {
  norms_.push_back(grad_norm);
  if (norms_.size() > kWindow) norms_.erase(norms_.begin());
}

void Guard::restore(std::vector<double> recent_norms) {
  norms_ = std::move(recent_norms);
  if (norms_.size() > kWindow) norms_.erase(norms_.begin(), norms_.end() - kWindow);
}

double SampleSuspicion::measure(GuardWatch watch) const {
  switch (watch) {
    case GuardWatch::kKl:
      return kl;
    case GuardWatch::kGradNorm:
      return pull;
    default:
      return gap;
  }
}

std::vector<SampleSuspicion> suspects(std::vector<SampleSuspicion> samples, GuardWatch watch) {
  constexpr size_t kMost = 4;
  const auto weight = [&](const SampleSuspicion& sample) {
    if (!sample.is_finite) return std::pair(1, 0.0);
    return std::pair(0, sample.measure(watch));
  };
  std::stable_sort(samples.begin(), samples.end(),
                   [&](const auto& a, const auto& b) { return weight(a) > weight(b); });
  if (samples.size() > kMost) samples.resize(kMost);
  // Where something is not finite, only that is worth naming.
  if (!samples.empty() && !samples[0].is_finite) {
    std::erase_if(samples, [](const SampleSuspicion& sample) { return sample.is_finite; });
  }
  return samples;
}

}  // namespace nibble
