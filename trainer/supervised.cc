// The supervised half of Trainer: records instead of rollouts.
#include <ATen/core/grad_mode.h>

#include <array>

#include "core/base/clock.h"
#include "core/comm/reduce.h"
#include "core/models/tape_executor.h"
#include "trainer/tape_values.h"
#include "trainer/token_records.h"
#include "trainer/trainer.h"

namespace nibble {

// The micro-batches of one pass on this rank, as many as on every other, and what all ranks' weigh.
struct Trainer::RecordPass {
  std::vector<MicroBatch> batches;
  LossTotals totals;
  TokenLoss sums;  // of this rank; the loss is already divided by the totals
};

Trainer::RecordPass Trainer::plan_pass(std::span<const TokenRecord* const> records) {
  RecordPass pass;
  pass.batches = make_record_batches(records, micro_batch_tokens());
  pass.totals = agree_on(pass.batches);
  return pass;
}

void Trainer::run_records(RecordPass& pass, bool trains) {
  for (const MicroBatch& batch : pass.batches) {
    const TapeResult result = run_tape(own_model(), batch.packed);
    const std::vector<float> log_prob = values_of(result.log_prob);
    const std::vector<float> entropy = values_of(result.entropy);
    std::vector<float> grad(log_prob.size(), 0.0f);
    pass.sums.loss += policy_loss<float>({.logp = log_prob,
                                          .old_logp = log_prob,
                                          .rollout_logp = {},
                                          .ref_logp = {},
                                          .advantage = {},
                                          .mask = batch.mask,
                                          .sample_begin = batch.sample_begin},
                                         config_.algorithm.loss, pass.totals, grad)
                          .loss;
    for (size_t i = 0; i < entropy.size(); ++i) {
      if (batch.mask[i] != 0) pass.sums.entropy += static_cast<double>(entropy[i]);
    }
    if (!batch.is_idle) pass.sums.computed_tokens += std::ssize(batch.packed.tokens);
    if (trains) run_backward({{result.log_prob, grad}}, weights_);
  }
}

TokenLoss Trainer::finish_pass(const RecordPass& pass) {
  std::array<double, 3> sums = {pass.sums.loss, pass.sums.entropy,
                                static_cast<double>(pass.sums.computed_tokens)};
  if (!counts_figures()) sums = {};
  all_reduce_sum(group_, sums);
  return {sums[0], sums[1] / static_cast<double>(std::max<int64_t>(1, pass.totals.num_tokens)),
          pass.totals.num_tokens, static_cast<int64_t>(sums[2])};
}

SupervisedMetrics Trainer::train_records(std::span<const TokenRecord* const> records) {
  SupervisedMetrics metrics;
  Stopwatch clock;
  RecordPass pass = plan_pass(records);
  weights_.zero_gradients();
  run_records(pass, /*trains=*/true);
  metrics.tokens = finish_pass(pass);
  metrics.forward_backward_ms = clock.restart_ms();
  const double grad_norm = gradient_norm();
  metrics.optimizer_ms = clock.elapsed_ms();
  const Step done = take_step(grad_norm);
  metrics.update = done.update;
  metrics.changes = done.changes;
  metrics.held = done.held;
  metrics.optimizer_ms += done.optimizer_ms;
  metrics.pack_ms = done.pack_ms;
  metrics.gathered = weights_.take_bytes();
  return metrics;
}

TokenLoss Trainer::evaluate_records(std::span<const TokenRecord* const> records) {
  const at::NoGradGuard no_grad;
  RecordPass pass = plan_pass(records);
  run_records(pass, /*trains=*/false);
  weights_.take_bytes();  // what moved is not the next step's
  return finish_pass(pass);
}

}  // namespace nibble
