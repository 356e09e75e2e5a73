#include "trainer/algo/kl.h"

#include <algorithm>
#include <cmath>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kMaxLogRatio = 20;
constexpr double kMaxLowVarKl = 10;

KlTerm unclamped(KlEstimator estimator, double logp, double ref_logp) {
  const double d = logp - ref_logp;
  switch (estimator) {
    case KlEstimator::kK1:
      return {d, 1};
    case KlEstimator::kK2:
      return {0.5 * d * d, d};
    case KlEstimator::kK3:
      return {std::exp(-d) - 1 + d, 1 - std::exp(-d)};
    case KlEstimator::kLowVarKl: {
      const double clamped = std::clamp(d, -kMaxLogRatio, kMaxLogRatio);
      const double grad = clamped == d ? 1 - std::exp(-d) : 0;
      return {std::exp(-clamped) - 1 + clamped, grad};
    }
  }
  fail(ErrorCode::kInternal, "no KL estimator has the number {}", static_cast<int>(estimator));
}

KlTerm limited(KlEstimator estimator, KlTerm term) {
  if (estimator != KlEstimator::kLowVarKl || std::abs(term.value) <= kMaxLowVarKl) return term;
  return {std::clamp(term.value, -kMaxLowVarKl, kMaxLowVarKl), 0};
}

}  // namespace

KlTerm kl_term(KlEstimator estimator, double logp, double ref_logp) {
  return limited(estimator, unclamped(estimator, logp, ref_logp));
}

KlTerm unbiased_kl_term(KlEstimator estimator, double logp, double ref_logp, double old_logp) {
  const KlTerm term = unclamped(estimator, logp, ref_logp);
  const double log_ratio = std::clamp(logp - old_logp, -kMaxLogRatio, kMaxLogRatio);
  const double ratio = std::exp(log_ratio);
  const double ratio_grad = log_ratio == logp - old_logp ? ratio : 0;
  return limited(estimator, {ratio * term.value, ratio * term.grad_logp + ratio_grad * term.value});
}

}  // namespace nibble
