// What Trainer does with a rollout before its first update.
#include <array>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/comm/reduce.h"
#include "trainer/scoring.h"
#include "trainer/trainer.h"
#include "trainer/update_work.h"

namespace nibble {

LossTotals Trainer::agree_on(std::vector<MicroBatch>& batches) {
  std::array<double, 2> counts{};
  for (const MicroBatch& batch : batches) {
    const LossTotals totals = count_totals(batch.mask, batch.sample_begin);
    counts[0] += static_cast<double>(totals.num_samples);
    counts[1] += static_cast<double>(totals.num_tokens);
  }
  if (!counts_figures()) counts = {};
  all_reduce_sum(group_, counts);
  const int64_t rounds = all_reduce_max(group_, static_cast<int64_t>(batches.size()));
  while (static_cast<int64_t>(batches.size()) < rounds) batches.push_back(idle_micro_batch());
  return {static_cast<int64_t>(counts[0]), static_cast<int64_t>(counts[1])};
}

void Trainer::value_tokens(std::span<UpdateWork> plan, TrainMetrics& metrics) {
  const Stopwatch clock;
  for (UpdateWork& work : plan) {
    for (const MicroBatch& batch : work.batches) {
      work.values.push_back(critic_->values(batch.packed));
    }
  }
  const ValueFigures figures = value_advantages(plan, config_.algorithm, group_, counts_figures());
  metrics.critic = CriticMetrics{};
  metrics.critic->value_mean = figures.mean;
  metrics.critic->explained_variance = figures.explained_variance;
  metrics.critic->ms = clock.elapsed_ms();
}

std::vector<UpdateWork> Trainer::plan_updates(std::span<const std::vector<SampleGroup>> updates,
                                              TrainMetrics& metrics) {
  const AlgorithmConfig& algorithm = config_.algorithm;
  std::vector<UpdateWork> plan;
  for (const std::vector<SampleGroup>& groups : updates) {
    const auto scored = score_groups(groups, algorithm, config_.max_new_tokens);
    UpdateWork work;
    work.batches = make_micro_batches(scored, micro_batch_tokens());
    work.totals = agree_on(work.batches);
    plan.push_back(std::move(work));
  }
  Stopwatch clock;
  if (needs_old_pass(algorithm, config_.optimizer.steps_per_rollout, has_exact_rollout())) {
    for (UpdateWork& work : plan) {
      for (const MicroBatch& batch : work.batches) {
        work.old_logp.push_back(forward_log_probs(own_model(), batch.packed, routes_of(batch)));
      }
    }
    metrics.old_log_probs_ms += clock.restart_ms();
  }
  if (algorithm.advantage.kl_reward_coef != 0.0) {
    NIBBLE_CHECK(reference_.has_value(), "a KL in the reward and algorithm.reference: never");
    for (UpdateWork& work : plan) {
      for (const MicroBatch& batch : work.batches) {
        work.reference.push_back(forward_log_probs(reference_->model(), batch.packed));
      }
    }
    metrics.reference_ms += clock.restart_ms();
  }
  if (teacher_) {
    for (UpdateWork& work : plan) {
      for (const MicroBatch& batch : work.batches) {
        work.teacher.push_back(forward_log_probs(teacher_->model(), batch.packed));
      }
    }
    metrics.has_teacher = true;
    metrics.kl_teacher = teacher_advantages(plan, group_, counts_figures());
    metrics.teacher_ms += clock.restart_ms();
  }
  if (critic_) {
    value_tokens(plan, metrics);
  } else if (is_token_level(algorithm.advantage.type)) {
    token_advantages(plan, algorithm, group_, counts_figures());
  }
  return plan;
}

}  // namespace nibble
