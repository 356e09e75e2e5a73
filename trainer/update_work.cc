#include "trainer/update_work.h"

#include <array>

#include "core/base/fail.h"
#include "core/comm/reduce.h"
#include "trainer/algo/distillation.h"
#include "trainer/algo/reinforce_pp.h"
#include "trainer/algo/whiten.h"

namespace nibble {
namespace {

// A micro-batch and the advantages of its tokens before normalization.
struct Part {
  MicroBatch* batch = nullptr;
  std::vector<double> advantages;
};

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

Part make_part(UpdateWork& work, size_t b, const AlgorithmConfig& config) {
  Part part{&work.batches[b], {}};
  const MicroBatch& batch = *part.batch;
  const AdvantageConfig& advantage = config.advantage;
  std::vector<double> kl;
  if (advantage.kl_reward_coef != 0) kl = token_kl(work, b, config.loss.kl_estimator);
  std::vector<double> score;
  for (size_t s = 0; s + 1 < batch.sample_begin.size(); ++s) {
    const int64_t begin = batch.sample_begin[s];
    const bool is_empty = begin == batch.sample_begin[s + 1];
    score.push_back(is_empty ? 0
                             : static_cast<double>(batch.advantage[static_cast<size_t>(begin)]));
  }
  part.advantages.resize(batch.mask.size());
  const TokenRewards rewards{score, kl, batch.mask, batch.sample_begin};
  if (advantage.type == AdvantageType::kReinforcePp) {
    reinforce_pp_returns(rewards, advantage.kl_reward_coef, advantage.gamma, part.advantages);
  } else {
    reinforce_pp_baseline(rewards, advantage.kl_reward_coef, part.advantages);
  }
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
  std::array<double, 2> sums{};
  for (const Part& part : parts) {
    const MaskedSums own = masked_sums(part.advantages, part.batch->mask);
    sums[0] += own.count;
    sums[1] += own.sum;
  }
  if (!counts) sums = {};
  all_reduce_sum(group, sums);
  const MaskedSums all{sums[0], sums[1]};
  double squares = 0;
  for (const Part& part : parts) {
    squares += masked_squares(part.advantages, part.batch->mask, all.mean());
  }
  if (!counts) squares = 0;
  all_reduce_sum(group, std::span(&squares, 1));
  for (Part& part : parts) {
    whiten(part.advantages, all, squares);
    part.batch->advantage.assign(part.advantages.begin(), part.advantages.end());
  }
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
