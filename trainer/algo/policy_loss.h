#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "trainer/algo/aggregation.h"
#include "trainer/algo/correction.h"
#include "trainer/algo/kl.h"

namespace nibble {

/// r = exp(logp - old_logp). Sources: PPO, Schulman et al., 2017, arXiv:1707.06347 (clip-higher:
/// DAPO, Yu et al., 2025, arXiv:2503.14476; dual clip: Ye et al., 2020, arXiv:1912.09729); GSPO,
/// Zheng et al., 2025, arXiv:2507.18071; CISPO, MiniMax, 2025, arXiv:2506.13585.
enum class PolicyObjective {
  kPpoClip,  ///< max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) per token
  kGspo,     ///< the same with one r per sample: exp of the mean log ratio of its tokens
  kCispo,    ///< -stop_gradient(clip(r)) A logp
  kSft,      ///< -logp: cross-entropy of given tokens; neither r nor A is read
};

struct PolicyLossConfig {
  PolicyObjective objective = PolicyObjective::kPpoClip;
  double clip_low = 0.2;   ///< r is clipped below 1 - clip_low; 1 = no lower bound (cispo)
  double clip_high = 0.2;  ///< and above 1 + clip_high; DAPO: 0.28
  double dual_clip = 0;    ///< c > 1: for A < 0 the loss is at most -c A; 0 = off; ppo_clip, gspo
  Aggregation aggregation = Aggregation::kSeqMeanTokenMean;
  double sum_norm = 1;  ///< divisor of seq-mean-token-sum-norm, e.g. the response limit
  CorrectionConfig correction;
  KlEstimator kl_estimator = KlEstimator::kLowVarKl;
  double kl_coef = 0;        ///< 0 = the KL is measured where a reference is given, not trained on
  bool kl_unbiased = false;  ///< times the importance ratio
  double entropy_coef = 0;   ///< of the entropy bonus, which is entropy_bonus()'s
};

/// Throws Error{kInvalidArgument} naming the first value out of its range.
void validate(const PolicyLossConfig& config);

/// The target tokens of one micro-batch, samples packed one behind the other. A sample is never
/// split over batches. Masked tokens are not read, whatever stands there. Real: float or double.
template <typename Real>
struct PolicyBatch {
  std::span<const Real> logp;          ///< [tokens] under the weights being trained
  std::span<const Real> old_logp;      ///< [tokens] under the weights that sampled, by the trainer
  std::span<const Real> rollout_logp;  ///< [tokens] as the rollout engine saw it; may be empty
  std::span<const Real> ref_logp;      ///< [tokens] under the reference; may be empty
  std::span<const Real> advantage;     ///< [tokens]; sft: may be empty
  std::span<const uint8_t> mask;       ///< [tokens] non-zero = counts
  std::span<const int64_t> sample_begin;  ///< [samples + 1] from 0 to the number of tokens
};

/// Values of one micro-batch under the denominators of the whole step: the sum over all parts (+=)
/// is the step's value. `_mean`, `_share` and the losses are aggregated as the loss is; `_max` is a
/// maximum; `ess` is a mean over samples.
struct PolicyLoss {
  double loss = 0;         ///< policy_loss + kl_coef * kl_loss
  double policy_loss = 0;  ///< after correction
  double kl_loss = 0;      ///< of kl_estimator; 0 without a reference
  double clip_share = 0;   ///< tokens whose ratio was clipped
  double ratio_mean = 0;
  double ratio_max = 0;
  double old_kl_mean = 0;        ///< k1 of old against new: old_logp - logp
  double ess = 0;                ///< effective sample size / tokens: (sum r)^2 / (n sum r^2)
  double correction_mean = 0;    ///< factor; 1 where there is no correction
  double correction_share = 0;   ///< tokens whose weight was cut
  double rejected_share = 0;     ///< tokens that mis left out by their own ratio
  double vetoed_share = 0;       ///< tokens that it left out with their whole sample
  double rollout_diff_mean = 0;  ///< |old_logp - rollout_logp|
  double rollout_diff_max = 0;
  double rollout_kl_mean = 0;  ///< k3 of rollout against trainer: exp(d) - 1 - d, d = old - rollout
  double reference_kl_mean = 0;  ///< k1 against the reference
  /// All that parts add up: everything but the maxima, of which a whole has the largest.
  std::array<double*, 14> summed();
  PolicyLoss& operator+=(const PolicyLoss& other);
};

/// Loss of one micro-batch and its gradient with respect to logp.
///   totals     denominators of the whole step (count_totals, summed); at least those of the batch
///   grad_logp  [tokens], overwritten; d loss / d logp, 0 at masked tokens
/// All arithmetic in double; the log ratio is clamped to +-20, with gradient 0 beyond.
/// Throws Error{kInvalidArgument} for spans that do not fit together, a missing rollout_logp or
/// ref_logp that the config needs, and an unmasked value that is not finite (naming sample and
/// token).
template <typename Real>
PolicyLoss policy_loss(const PolicyBatch<Real>& batch, const PolicyLossConfig& config,
                       const LossTotals& totals, std::span<Real> grad_logp);

extern template PolicyLoss policy_loss(const PolicyBatch<float>&, const PolicyLossConfig&,
                                       const LossTotals&, std::span<float>);
extern template PolicyLoss policy_loss(const PolicyBatch<double>&, const PolicyLossConfig&,
                                       const LossTotals&, std::span<double>);

}  // namespace nibble
