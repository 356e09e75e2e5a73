#include "trainer/update_work.h"

#include <array>

#include "core/base/fail.h"
#include "core/comm/reduce.h"
#include "trainer/algo/distillation.h"
#include "trainer/algo/gae.h"
#include "trainer/algo/reinforce_pp.h"
#include "trainer/algo/whiten.h"

namespace nibble {
namespace {

// A micro-batch and what its tokens have, before normalization.
struct Part {
  MicroBatch* batch = nullptr;
  std::vector<double> advantages;
  std::vector<double> returns = {};  // of a critic, like the next
  std::vector<double> errors = {};   // returns less values
};

// Count, sum and squares about the mean of unmasked tokens of all parts and ranks.
struct Moments {
  MaskedSums sums;
  double squares = 0;
};

// `counts` as in token_advantages(). Collective.
Moments moments_of(std::span<const Part> parts, std::vector<double> Part::*values,
                   ProcessGroup& group, bool counts) {
  std::array<double, 2> sums{};
  for (const Part& part : parts) {
    const MaskedSums own = masked_sums(part.*values, part.batch->mask);
    sums[0] += own.count;
    sums[1] += own.sum;
  }
  if (!counts) sums = {};
  all_reduce_sum(group, sums);
  Moments moments{{sums[0], sums[1]}, 0};
  for (const Part& part : parts) {
    moments.squares += masked_squares(part.*values, part.batch->mask, moments.sums.mean());
  }
  if (!counts) moments.squares = 0;
  all_reduce_sum(group, std::span(&moments.squares, 1));
  return moments;
}

void normalize(std::span<Part> parts, ProcessGroup& group, bool counts) {
  const Moments moments = moments_of(parts, &Part::advantages, group, counts);
  for (Part& part : parts) {
    whiten(part.advantages, moments.sums, moments.squares);
    part.batch->advantage.assign(part.advantages.begin(), part.advantages.end());
  }
}

const std::vector<float>& old_log_probs(const UpdateWork& work, size_t b) {
  return work.old_logp.empty() ? work.batches[b].rollout_log_prob : work.old_logp[b];
}

std::vector<double> token_kl(const UpdateWork& work, size_t b, KlEstimator estimator) {
  const std::vector<float>& old = old_log_probs(work, b);
  const std::vector<float>& reference = work.reference[b];
  NIBBLE_CHECK(old.size() == reference.size(), "{} old log-probabilities, {} of the reference",
               old.size(), reference.size());
  std::vector<double> kl;
  kl.reserve(old.size());
  for (size_t i = 0; i < old.size(); ++i) {
    kl.push_back(
        kl_term(estimator, static_cast<double>(old[i]), static_cast<double>(reference[i])).value);
  }
  return kl;
}

// The samples' scores, which stand where their advantages will.
std::vector<double> scores_of(const MicroBatch& batch) {
  std::vector<double> score;
  for (size_t s = 0; s + 1 < batch.sample_begin.size(); ++s) {
    const int64_t begin = batch.sample_begin[s];
    const bool is_empty = begin == batch.sample_begin[s + 1];
    score.push_back(is_empty ? 0
                             : static_cast<double>(batch.advantage[static_cast<size_t>(begin)]));
  }
  return score;
}

// What TokenRewards looks at.
struct ScoredTokens {
  std::vector<double> score;
  std::vector<double> kl;
};

ScoredTokens scored_tokens(const UpdateWork& work, size_t b, const AlgorithmConfig& config) {
  ScoredTokens tokens{scores_of(work.batches[b]), {}};
  if (config.advantage.kl_reward_coef != 0) {
    tokens.kl = token_kl(work, b, config.loss.kl_estimator);
  }
  return tokens;
}

Part make_part(UpdateWork& work, size_t b, const AlgorithmConfig& config) {
  MicroBatch& batch = work.batches[b];
  const AdvantageConfig& advantage = config.advantage;
  const ScoredTokens tokens = scored_tokens(work, b, config);
  const TokenRewards rewards{tokens.score, tokens.kl, batch.mask, batch.sample_begin};
  Part part{&batch, std::vector<double>(batch.mask.size())};
  if (advantage.type == AdvantageType::kReinforcePp) {
    reinforce_pp_returns(rewards, advantage.kl_reward_coef, advantage.gamma, part.advantages);
  } else {
    reinforce_pp_baseline(rewards, advantage.kl_reward_coef, part.advantages);
  }
  return part;
}

Part make_valued_part(UpdateWork& work, size_t b, const AlgorithmConfig& config) {
  MicroBatch& batch = work.batches[b];
  const AdvantageConfig& advantage = config.advantage;
  const ScoredTokens tokens = scored_tokens(work, b, config);
  const size_t count = batch.mask.size();
  std::vector<double> reward(count);
  // Discounted by 0, a return is the token's own reward.
  reinforce_pp_returns({tokens.score, tokens.kl, batch.mask, batch.sample_begin},
                       advantage.kl_reward_coef, 0, reward);
  const std::vector<double> value(work.values[b].begin(), work.values[b].end());
  Part part{&batch, std::vector<double>(count), std::vector<double>(count), {}};
  gae({reward, value, batch.mask, batch.sample_begin}, advantage.gamma, advantage.lambda,
      part.advantages, part.returns);
  for (size_t i = 0; i < count; ++i) part.errors.push_back(part.returns[i] - value[i]);
  return part;
}

}  // namespace

bool needs_old_pass(const AlgorithmConfig& config, int64_t updates, bool is_exact) {
  if (config.use_rollout_logprobs || is_exact) return false;
  return updates > 1 || config.advantage.kl_reward_coef != 0 ||
         config.advantage.type == AdvantageType::kOpd;
}

void token_advantages(std::span<UpdateWork> work, const AlgorithmConfig& config,
                      ProcessGroup& group, bool counts) {
  std::vector<Part> parts;
  for (UpdateWork& update : work) {
    for (size_t b = 0; b < update.batches.size(); ++b) {
      parts.push_back(make_part(update, b, config));
    }
  }
  normalize(parts, group, counts);
}

ValueFigures value_advantages(std::span<UpdateWork> work, const AlgorithmConfig& config,
                              ProcessGroup& group, bool counts) {
  std::vector<Part> parts;
  for (UpdateWork& update : work) {
    for (size_t b = 0; b < update.batches.size(); ++b) {
      parts.push_back(make_valued_part(update, b, config));
      update.returns.push_back(parts.back().returns);
    }
  }
  const Moments returns = moments_of(parts, &Part::returns, group, counts);
  const Moments errors = moments_of(parts, &Part::errors, group, counts);
  normalize(parts, group, counts);
  return {returns.sums.mean() - errors.sums.mean(),
          returns.squares > 0 ? 1 - errors.squares / returns.squares : 0};
}

double teacher_advantages(std::span<UpdateWork> work, ProcessGroup& group, bool counts) {
  std::array<double, 2> sums{};
  for (UpdateWork& update : work) {
    for (size_t b = 0; b < update.batches.size(); ++b) {
      MicroBatch& batch = update.batches[b];
      const std::vector<float>& old = old_log_probs(update, b);
      const std::vector<double> student(old.begin(), old.end());
      const std::vector<double> teacher(update.teacher[b].begin(), update.teacher[b].end());
      std::vector<double> advantages(student.size());
      distillation_advantages(student, teacher, advantages);
      for (size_t i = 0; i < advantages.size(); ++i) {
        if (batch.mask[i] == 0) advantages[i] = 0;
      }
      const MaskedSums own = masked_sums(advantages, batch.mask);
      sums[0] += own.count;
      sums[1] += own.sum;
      batch.advantage.assign(advantages.begin(), advantages.end());
    }
  }
  if (!counts) sums = {};
  all_reduce_sum(group, sums);
  return sums[0] == 0 ? 0 : -sums[1] / sums[0];
}

}  // namespace nibble
