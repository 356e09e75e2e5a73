#include "cli/algorithm_checks.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/fail.h"

namespace nibble {
namespace {

std::string_view name_of(AdvantageType type) {
  for (const auto& [value, name] : enum_names(AdvantageType{})) {
    if (value == type) return name;
  }
  return "?";
}

// One configuration under check. Keys without a section are of `algorithm`.
class Checks {
 public:
  Checks(const RunConfig& config, const ConfigSource& source)
      : c_(config.algorithm),
        rollout_(config.rollout),
        teacher_(config.model.teacher),
        source_(source),
        changed_(changed_keys(config)) {}

  void run() const {
    check_models();
    check_groups();
    check_unread();
    check_kl();
    check_correction();
    check_overlong();
  }

 private:
  bool is_changed(std::string_view key) const {
    const std::string path = "algorithm." + std::string(key);
    return std::find(changed_.begin(), changed_.end(), path) != changed_.end();
  }
  std::string where(const std::string& key) const { return source_.where("algorithm." + key); }

  // `key` is set to something that `other`, as it is, makes meaningless.
  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    fail(ErrorCode::kInvalidArgument, "algorithm.{} ({}) {}", key, where(key), why);
  }

  void check_models() const {
    const AdvantageType type = c_.advantage.type;
    const bool is_distilled = type == AdvantageType::kOpd;
    if (is_distilled && teacher_.empty()) {
      refuse("advantage", "is opd, which needs a teacher: name its directory in model.teacher");
    }
    if (!is_distilled && !teacher_.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "model.teacher ({}) means nothing without algorithm.advantage: opd: remove it",
           source_.where("model.teacher"));
    }
    if (!is_distilled) return;
    // What is made of rewards.
    if (rollout_.dynamic_filter != DynamicFilter::kNone) {
      fail(ErrorCode::kInvalidArgument,
           "rollout.dynamic_filter ({}) looks at rewards, from which algorithm.advantage: opd ({}) "
           "does not learn: remove one",
           source_.where("rollout.dynamic_filter"), where("advantage"));
    }
    if (c_.overlong_buffer > 0) {
      refuse("overlong_buffer",
             "changes rewards, from which algorithm.advantage: opd does not "
             "learn: remove it");
    }
  }

  void check_groups() const {
    const AdvantageType type = c_.advantage.type;
    const bool compares = type == AdvantageType::kGrpo || type == AdvantageType::kRloo ||
                          type == AdvantageType::kReinforcePpBaseline;
    if (rollout_.samples_per_prompt > 1 || !compares) return;
    refuse("advantage",
           fmt::format("is {}, which compares a prompt's samples, but rollout.samples_per_prompt "
                       "is 1 ({}): raise it, or set algorithm.advantage: reinforce_pp or gae",
                       name_of(c_.advantage.type), source_.where("rollout.samples_per_prompt")));
  }

  // Values that only one choice of another key reads.
  void check_unread() const {
    const auto only_with = [&](std::string_view key, bool is_read, std::string_view other) {
      if (is_read || !is_changed(key)) return;
      refuse(std::string(key), fmt::format("means nothing without algorithm.{}: remove it", other));
    };
    const AdvantageType type = c_.advantage.type;
    const PolicyObjective objective = c_.loss.objective;
    only_with("normalize_std", type == AdvantageType::kGrpo, "advantage: grpo");
    const bool has_critic = type == AdvantageType::kGae;
    only_with("gamma", type == AdvantageType::kReinforcePp || has_critic,
              "advantage: reinforce_pp or gae");
    only_with("lambda", has_critic, "advantage: gae");
    for (const std::string& key : changed_) {
      if (has_critic || !key.starts_with("critic.")) continue;
      fail(ErrorCode::kInvalidArgument,
           "{} ({}) means nothing without algorithm.advantage: gae: remove it", key,
           source_.where(key));
    }
    only_with("dual_clip", objective != PolicyObjective::kCispo, "loss: ppo_clip or gspo");
    only_with("sum_norm", c_.loss.aggregation == Aggregation::kSeqMeanTokenSumNorm,
              "aggregation: seq-mean-token-sum-norm");
    const OffPolicyCorrection kind = c_.loss.correction.kind;
    for (const char* key : {"correction_low", "correction_high"}) {
      only_with(key, kind != OffPolicyCorrection::kNone, "correction: tis, icepop or mis");
    }
    for (const char* key : {"mis_mode", "mis_level", "mis_veto", "mis_reject_level",
                            "mis_reject_low", "mis_reject_high"}) {
      only_with(key, kind == OffPolicyCorrection::kMis, "correction: mis");
    }
    for (const char* key : {"mis_reject_low", "mis_reject_high"}) {
      only_with(key, c_.loss.correction.reject_level.has_value(), "mis_reject_level");
    }
    only_with("overlong_penalty", c_.overlong_buffer > 0, "overlong_buffer");
  }

  void check_kl() const {
    const double in_reward = c_.advantage.kl_reward_coef;
    for (const auto& [key, coef] :
         {std::pair{"kl_loss_coef", c_.loss.kl_coef}, {"kl_reward_coef", in_reward}}) {
      if (coef == 0 || c_.reference != ReferenceMode::kNever) continue;
      refuse(key, fmt::format("is {}, but algorithm.reference is never ({}): set auto, or the "
                              "coefficient to 0",
                              coef, where("reference")));
    }
    if (in_reward == 0) return;
    if (c_.loss.kl_coef != 0) {
      refuse("kl_reward_coef",
             fmt::format("is {} and algorithm.kl_loss_coef {} ({}): the KL is in the reward or in "
                         "the loss, not in both: remove one",
                         in_reward, c_.loss.kl_coef, where("kl_loss_coef")));
    }
    if (!is_token_level(c_.advantage.type)) {
      refuse(
          "kl_reward_coef",
          fmt::format("is {}, but algorithm.advantage is {} ({}), whose reward is one number a "
                      "sample: set reinforce_pp, reinforce_pp_baseline or gae, or put the KL into "
                      "the loss with algorithm.kl_loss_coef",
                      in_reward, name_of(c_.advantage.type), where("advantage")));
    }
    if (c_.loss.kl_unbiased) {
      refuse(
          "kl_unbiased",
          fmt::format("goes with algorithm.kl_loss_coef; in the reward (algorithm.kl_reward_coef "
                      "= {}, {}) the importance ratio is 1: remove it",
                      in_reward, where("kl_reward_coef")));
    }
  }

  void check_correction() const {
    const CorrectionConfig& correction = c_.loss.correction;
    if (correction.kind == OffPolicyCorrection::kNone) return;
    if (c_.use_rollout_logprobs) {
      refuse("correction",
             fmt::format("weighs trainer against rollout, but with algorithm.use_rollout_logprobs: "
                         "true ({}) the old log-probabilities are the rollout's and the weight is "
                         "1: remove one",
                         where("use_rollout_logprobs")));
    }
    const bool is_truncated =
        correction.kind == OffPolicyCorrection::kMis && correction.mode == MisMode::kTruncate;
    // Rejection without bounds of its own reads it.
    const bool is_read = correction.reject_level && !correction.reject_low;
    if (is_truncated && !is_read && correction.low != 0) {
      refuse("correction_low",
             fmt::format("is {}, but algorithm.mis_mode is truncate ({}), which has an upper bound "
                         "only: set clip or mask, or remove it",
                         correction.low, where("mis_mode")));
    }
  }

  void check_overlong() const {
    if (c_.overlong_buffer <= rollout_.max_new_tokens) return;
    refuse("overlong_buffer",
           fmt::format("is {}, more than rollout.max_new_tokens = {} ({})", c_.overlong_buffer,
                       rollout_.max_new_tokens, source_.where("rollout.max_new_tokens")));
  }

  const AlgorithmConfig& c_;
  const RolloutConfig& rollout_;
  const std::filesystem::path& teacher_;
  const ConfigSource& source_;
  const std::vector<std::string> changed_;
};

}  // namespace

void check_algorithm(const RunConfig& config, const ConfigSource& source) {
  Checks(config, source).run();
}

}  // namespace nibble
