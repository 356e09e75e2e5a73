#include "trainer/algo/policy_loss.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string_view>
#include <vector>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kMaxLogRatio = 20;

/// One unmasked token, in double.
struct Token {
  size_t index = 0;  // in the batch
  double logp = 0, old_logp = 0, rollout_logp = 0, ref_logp = 0, advantage = 0;
  double log_ratio = 0;       // clamped
  double log_ratio_grad = 0;  // 1, or 0 where the clamp is active
};

/// A token loss before correction and its derivatives.
struct Objective {
  double value = 0;
  double grad_log_ratio = 0;
  double grad_logp = 0;  // what does not go through the ratio
  bool is_clipped = false;
};

template <typename Real>
void check_batch(const PolicyBatch<Real>& batch, const PolicyLossConfig& config, size_t grad_size) {
  const size_t num_tokens = batch.mask.size();
  const auto check_size = [&](size_t size, std::string_view name) {
    if (size != num_tokens) {
      fail(ErrorCode::kInvalidArgument, "policy loss: {} has {} tokens, the mask has {}", name,
           size, num_tokens);
    }
  };
  check_size(batch.logp.size(), "logp");
  check_size(batch.old_logp.size(), "old_logp");
  if (!batch.advantage.empty() || config.objective != PolicyObjective::kSft) {
    check_size(batch.advantage.size(), "advantage");
  }
  check_size(grad_size, "grad_logp");
  if (!batch.rollout_logp.empty() || config.correction.kind != OffPolicyCorrection::kNone) {
    check_size(batch.rollout_logp.size(), "rollout_logp");
  }
  if (!batch.ref_logp.empty() || config.kl_coef != 0) {
    check_size(batch.ref_logp.size(), "ref_logp");
  }
}

void check_totals(const LossTotals& batch, const LossTotals& totals) {
  if (totals.num_samples < batch.num_samples || totals.num_tokens < batch.num_tokens) {
    fail(ErrorCode::kInvalidArgument,
         "policy loss: the step's totals ({} samples, {} tokens) are below those of one of its "
         "batches ({} samples, {} tokens)",
         totals.num_samples, totals.num_tokens, batch.num_samples, batch.num_tokens);
  }
}

template <typename Real>
Token load_token(const PolicyBatch<Real>& batch, size_t index, size_t sample) {
  const auto load = [&](std::span<const Real> values, std::string_view name) {
    if (values.empty()) return 0.0;
    const auto value = static_cast<double>(values[index]);
    if (!std::isfinite(value)) {
      fail(ErrorCode::kInvalidArgument, "policy loss: {} of token {} of sample {} is {}", name,
           static_cast<int64_t>(index) - batch.sample_begin[sample], sample, value);
    }
    return value;
  };
  Token token;
  token.index = index;
  token.logp = load(batch.logp, "logp");
  token.old_logp = load(batch.old_logp, "old_logp");
  token.rollout_logp = load(batch.rollout_logp, "rollout_logp");
  token.ref_logp = load(batch.ref_logp, "ref_logp");
  token.advantage = load(batch.advantage, "advantage");
  const double log_ratio = token.logp - token.old_logp;
  token.log_ratio = std::clamp(log_ratio, -kMaxLogRatio, kMaxLogRatio);
  token.log_ratio_grad = token.log_ratio == log_ratio ? 1 : 0;
  return token;
}

Objective clipped_objective(const PolicyLossConfig& config, double log_ratio, double advantage) {
  const double ratio = std::exp(log_ratio);
  const double clipped = std::clamp(ratio, 1 - config.clip_low, 1 + config.clip_high);
  Objective out{-ratio * advantage, -ratio * advantage, 0, false};
  if (-clipped * advantage > out.value) out = {-clipped * advantage, 0, 0, true};
  if (config.dual_clip > 0 && advantage < 0 && -config.dual_clip * advantage < out.value) {
    out = {-config.dual_clip * advantage, 0, 0, out.is_clipped};
  }
  return out;
}

Objective cispo_objective(const PolicyLossConfig& config, const Token& token) {
  const double ratio = std::exp(token.log_ratio);
  const double clipped = std::clamp(ratio, 1 - config.clip_low, 1 + config.clip_high);
  return {-clipped * token.advantage * token.logp, 0, -clipped * token.advantage, clipped != ratio};
}

std::vector<TokenCorrection> corrections_of(const CorrectionConfig& config,
                                            const std::vector<Token>& tokens) {
  std::vector<double> log_ratio;
  log_ratio.reserve(tokens.size());
  for (const Token& token : tokens) log_ratio.push_back(token.old_logp - token.rollout_logp);
  return correct_sample(config, log_ratio);
}

/// Adds what one sample's tokens contribute. Members are constant but the sums and the gradient.
template <typename Real>
struct SampleLoss {
  const PolicyBatch<Real>& batch;
  const PolicyLossConfig& config;
  const LossTotals& totals;
  std::span<Real> grad_logp;
  PolicyLoss sums;

  void add(const std::vector<Token>& tokens) {
    if (tokens.empty()) return;
    const auto count = static_cast<double>(tokens.size());
    const double weight = token_weight(config.aggregation, totals,
                                       static_cast<int64_t>(tokens.size()), config.sum_norm);
    double mean_log_ratio = 0;
    for (const Token& token : tokens) mean_log_ratio += token.log_ratio / count;
    double mean_grad = 0;  // gspo: of the loss with respect to the mean log ratio
    const std::vector<TokenCorrection> corrections = corrections_of(config.correction, tokens);
    for (size_t i = 0; i < tokens.size(); ++i) {
      const Token& token = tokens[i];
      const double scale = weight * corrections[i].factor();
      const Objective out = objective_of(token, mean_log_ratio);
      sums.policy_loss += scale * out.value;
      sums.clip_share += out.is_clipped ? weight : 0;
      add_correction(corrections[i], weight);
      double grad = scale * out.grad_logp + add_kl(token, weight);
      if (config.objective == PolicyObjective::kGspo) {
        mean_grad += scale * out.grad_log_ratio;
      } else {
        grad += scale * out.grad_log_ratio * token.log_ratio_grad;
      }
      grad_logp[token.index] = static_cast<Real>(grad);
      add_rollout_metrics(token, weight);
    }
    if (config.objective == PolicyObjective::kGspo) spread(tokens, mean_grad / count);
    add_ratio_metrics(tokens, mean_log_ratio, weight);
  }

 private:
  Objective objective_of(const Token& token, double mean_log_ratio) const {
    switch (config.objective) {
      case PolicyObjective::kPpoClip:
        return clipped_objective(config, token.log_ratio, token.advantage);
      case PolicyObjective::kGspo:
        return clipped_objective(config, mean_log_ratio, token.advantage);
      case PolicyObjective::kCispo:
        return cispo_objective(config, token);
      case PolicyObjective::kSft:
        return {-token.logp, 0, -1, false};
    }
    fail(ErrorCode::kInternal, "no policy objective has the number {}",
         static_cast<int>(config.objective));
  }

  void add_correction(const TokenCorrection& correction, double weight) {
    sums.correction_mean += weight * correction.factor();
    sums.correction_share += correction.is_cut ? weight : 0;
    sums.rejected_share += correction.is_rejected ? weight : 0;
    sums.vetoed_share += correction.is_vetoed ? weight : 0;
  }

  void spread(const std::vector<Token>& tokens, double grad) {
    for (const Token& token : tokens) {
      const auto own = static_cast<double>(grad_logp[token.index]);
      grad_logp[token.index] = static_cast<Real>(own + grad * token.log_ratio_grad);
    }
  }

  double add_kl(const Token& token, double weight) {
    if (batch.ref_logp.empty()) return 0;
    const KlTerm term =
        config.kl_unbiased
            ? unbiased_kl_term(config.kl_estimator, token.logp, token.ref_logp, token.old_logp)
            : kl_term(config.kl_estimator, token.logp, token.ref_logp);
    sums.kl_loss += weight * term.value;
    sums.reference_kl_mean += weight * (token.logp - token.ref_logp);
    return config.kl_coef * weight * term.grad_logp;
  }

  void add_rollout_metrics(const Token& token, double weight) {
    if (batch.rollout_logp.empty()) return;
    const double diff = token.old_logp - token.rollout_logp;
    sums.rollout_diff_mean += weight * std::abs(diff);
    sums.rollout_diff_max = std::max(sums.rollout_diff_max, std::abs(diff));
    sums.rollout_kl_mean += weight * (std::expm1(diff) - diff);
  }

  void add_ratio_metrics(const std::vector<Token>& tokens, double mean_log_ratio, double weight) {
    const bool is_gspo = config.objective == PolicyObjective::kGspo;
    double sum = 0;
    double squares = 0;
    for (const Token& token : tokens) {
      const double ratio = std::exp(is_gspo ? mean_log_ratio : token.log_ratio);
      sum += ratio;
      squares += ratio * ratio;
      sums.ratio_max = std::max(sums.ratio_max, ratio);
      sums.old_kl_mean -= weight * token.log_ratio;
    }
    sums.ratio_mean += weight * sum;
    const auto count = static_cast<double>(tokens.size());
    sums.ess += sum * sum / (count * squares) / static_cast<double>(totals.num_samples);
  }
};

}  // namespace

std::array<double*, 14> PolicyLoss::summed() {
  return {&loss,
          &policy_loss,
          &kl_loss,
          &clip_share,
          &ratio_mean,
          &old_kl_mean,
          &ess,
          &correction_mean,
          &correction_share,
          &rejected_share,
          &vetoed_share,
          &rollout_diff_mean,
          &rollout_kl_mean,
          &reference_kl_mean};
}

PolicyLoss& PolicyLoss::operator+=(const PolicyLoss& other) {
  PolicyLoss part = other;
  const auto mine = summed();
  const auto theirs = part.summed();
  for (size_t i = 0; i < mine.size(); ++i) *mine[i] += *theirs[i];
  ratio_max = std::max(ratio_max, other.ratio_max);
  rollout_diff_max = std::max(rollout_diff_max, other.rollout_diff_max);
  return *this;
}

void validate(const PolicyLossConfig& config) {
  const auto require = [](bool is_valid, std::string_view name, double value,
                          std::string_view range) {
    if (!is_valid) {
      fail(ErrorCode::kInvalidArgument, "policy loss: {} is {}; it must be {}", name, value, range);
    }
  };
  // Written so that NaN fails.
  require(config.clip_low >= 0 && config.clip_low <= 1, "clip_low", config.clip_low, "in [0, 1]");
  require(config.clip_high >= 0 && std::isfinite(config.clip_high), "clip_high", config.clip_high,
          ">= 0");
  require(config.dual_clip == 0 || (config.dual_clip > 1 && std::isfinite(config.dual_clip)),
          "dual_clip", config.dual_clip, "0 (off) or > 1");
  require(config.sum_norm > 0 && std::isfinite(config.sum_norm), "sum_norm", config.sum_norm,
          "> 0");
  require(std::isfinite(config.kl_coef) && config.kl_coef >= 0, "kl_coef", config.kl_coef, ">= 0");
  require(std::isfinite(config.entropy_coef) && config.entropy_coef >= 0, "entropy_coef",
          config.entropy_coef, ">= 0");
  validate(config.correction);
}

template <typename Real>
PolicyLoss policy_loss(const PolicyBatch<Real>& batch, const PolicyLossConfig& config,
                       const LossTotals& totals, std::span<Real> grad_logp) {
  validate(config);
  check_batch(batch, config, grad_logp.size());
  check_totals(count_totals(batch.mask, batch.sample_begin), totals);
  std::fill(grad_logp.begin(), grad_logp.end(), Real{0});
  SampleLoss<Real> sample_loss{batch, config, totals, grad_logp, {}};
  std::vector<Token> tokens;
  for (size_t sample = 0; sample + 1 < batch.sample_begin.size(); ++sample) {
    tokens.clear();
    const auto end = static_cast<size_t>(batch.sample_begin[sample + 1]);
    for (auto i = static_cast<size_t>(batch.sample_begin[sample]); i < end; ++i) {
      if (batch.mask[i] != 0) tokens.push_back(load_token(batch, i, sample));
    }
    sample_loss.add(tokens);
  }
  PolicyLoss result = sample_loss.sums;
  result.loss = result.policy_loss + config.kl_coef * result.kl_loss;
  return result;
}

template PolicyLoss policy_loss(const PolicyBatch<float>&, const PolicyLossConfig&,
                                const LossTotals&, std::span<float>);
template PolicyLoss policy_loss(const PolicyBatch<double>&, const PolicyLossConfig&,
                                const LossTotals&, std::span<double>);

}  // namespace nibble
