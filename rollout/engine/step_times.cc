#include "rollout/engine/step_times.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr double kFade = 0.98;  // the last fifty steps count

}  // namespace

void StepTimes::observe(int64_t num_tokens, double ms) {
  const auto n = static_cast<double>(num_tokens);
  weight_ = kFade * weight_ + 1.0;
  n_ = kFade * n_ + n;
  t_ = kFade * t_ + ms;
  nn_ = kFade * nn_ + n * n;
  nt_ = kFade * nt_ + n * ms;
}

double StepTimes::variance() const { return nn_ - n_ * n_ / std::max(weight_, 1.0); }

// Steps of one size say nothing about the slope.
bool StepTimes::has_slope() const { return is_known() && variance() >= 0.5 * weight_; }

double StepTimes::slope_ms() const {
  return has_slope() ? std::max(0.0, (nt_ - n_ * t_ / weight_) / variance()) : 0.0;
}

double StepTimes::at_ms(int64_t num_tokens) const {
  if (!is_known()) return 0.0;
  const auto n = static_cast<double>(num_tokens);
  return std::max(0.0, t_ / weight_ + slope_ms() * (n - n_ / weight_));
}

}  // namespace nibble
