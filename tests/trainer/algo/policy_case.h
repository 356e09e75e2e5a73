#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "trainer/algo/policy_loss.h"

namespace nibble {

/// Packed token arrays that own what a PolicyBatch borrows.
template <typename Real>
struct PolicyCase {
  std::vector<Real> logp, old_logp, rollout_logp, ref_logp, advantage;
  std::vector<uint8_t> mask;
  std::vector<int64_t> sample_begin = {0};

  PolicyBatch<Real> batch() const {
    return {logp, old_logp, rollout_logp, ref_logp, advantage, mask, sample_begin};
  }
  LossTotals totals() const { return count_totals(mask, sample_begin); }
  /// Samples [begin, end) alone.
  PolicyCase samples(size_t begin, size_t end) const {
    PolicyCase part;
    const auto first = sample_begin[begin];
    const auto last = sample_begin[end];
    const auto cut = [&](const std::vector<Real>& from) {
      return from.empty() ? from : std::vector<Real>(from.begin() + first, from.begin() + last);
    };
    part.logp = cut(logp);
    part.old_logp = cut(old_logp);
    part.rollout_logp = cut(rollout_logp);
    part.ref_logp = cut(ref_logp);
    part.advantage = cut(advantage);
    part.mask.assign(mask.begin() + first, mask.begin() + last);
    for (size_t i = begin; i < end; ++i) part.sample_begin.push_back(sample_begin[i + 1] - first);
    return part;
  }
};

/// A list of lists behind each other.
inline std::vector<double> flatten(const Json& rows) {
  std::vector<double> flat;
  for (const Json& row : rows) {
    for (const Json& value : row) flat.push_back(value.get<double>());
  }
  return flat;
}

template <typename Real>
PolicyCase<Real> read_policy_case(const Json& json) {
  const auto read = [&](const char* key) {
    const auto flat = flatten(json[key]);
    return std::vector<Real>(flat.begin(), flat.end());
  };
  PolicyCase<Real> out;
  out.logp = read("logp");
  out.old_logp = read("old_logp");
  out.rollout_logp = read("rollout_logp");
  out.ref_logp = read("ref_logp");
  out.advantage = read("advantages");
  for (const double counts : flatten(json["mask"])) out.mask.push_back(counts != 0);
  for (const Json& row : json["logp"]) {
    out.sample_begin.push_back(out.sample_begin.back() + static_cast<int64_t>(row.size()));
  }
  return out;
}

inline PolicyLossConfig read_policy_config(const Json& params) {
  const std::map<std::string, PolicyObjective> objectives = {{"ppo", PolicyObjective::kPpoClip},
                                                             {"gspo", PolicyObjective::kGspo},
                                                             {"cispo", PolicyObjective::kCispo}};
  const std::map<std::string, Aggregation> aggregations = {
      {"seq-mean-token-mean", Aggregation::kSeqMeanTokenMean},
      {"token-mean", Aggregation::kTokenMean},
      {"seq-mean-token-sum-norm", Aggregation::kSeqMeanTokenSumNorm}};
  const std::map<std::string, OffPolicyCorrection> corrections = {
      {"none", OffPolicyCorrection::kNone},
      {"tis", OffPolicyCorrection::kTis},
      {"icepop", OffPolicyCorrection::kIcepop}};
  const std::map<std::string, KlEstimator> estimators = {{"k1", KlEstimator::kK1},
                                                         {"k2", KlEstimator::kK2},
                                                         {"k3", KlEstimator::kK3},
                                                         {"low_var_kl", KlEstimator::kLowVarKl}};
  PolicyLossConfig config;
  config.objective = objectives.at(params["algo"]);
  config.aggregation = aggregations.at(params["agg"]);
  config.clip_low = params.value("eps", 0.2);
  config.clip_high = params.value("eps_high", config.clip_low);
  if (config.objective == PolicyObjective::kCispo) {
    config.clip_low = 1 - params.value("ratio_min", 0.0);
    config.clip_high = params["ratio_max"].get<double>() - 1;
  }
  config.dual_clip = params.value("eps_c", 0.0);
  config.sum_norm = params.value("norm", 1.0);
  config.correction.kind = corrections.at(params.value("correction", "none"));
  config.correction.low = params.value("tis_low", 0.0);
  config.correction.high = params.value("tis_high", 2.0);
  config.kl_estimator = estimators.at(params.value("kl_type", "low_var_kl"));
  config.kl_coef = params.value("kl_coef", 0.0);
  config.kl_unbiased = params.value("unbiased_kl", false);
  return config;
}

}  // namespace nibble
