#pragma once

namespace nibble {

/// Estimators of KL(policy || reference) from one sampled token; D = logp - ref_logp. Source: k1 to
/// k3, Schulman, "Approximating KL divergence", 2020; low_var_kl: Miles' and verl's clamps.
enum class KlEstimator {
  kK1,        ///< D
  kK2,        ///< D^2 / 2
  kK3,        ///< exp(-D) - 1 + D
  kLowVarKl,  ///< k3 of D clamped to +-20, the result clamped to +-10
};

struct KlTerm {
  double value = 0;
  double grad_logp = 0;  ///< d value / d logp; 0 where a clamp is active
};

/// The estimate for one token.
KlTerm kl_term(KlEstimator estimator, double logp, double ref_logp);

/// The estimate times the importance ratio exp(logp - old_logp), which makes it unbiased where the
/// policy has moved since sampling. The gradient flows through the ratio too; its log is clamped to
/// +-20. low_var_kl clamps the product.
KlTerm unbiased_kl_term(KlEstimator estimator, double logp, double ref_logp, double old_logp);

}  // namespace nibble
