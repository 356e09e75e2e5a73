// One step of training: what a rollout's updates compute, and whether they are made.
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/comm/reduce.h"
#include "core/models/tape_executor.h"
#include "trainer/algo/entropy_bonus.h"
#include "trainer/tape_values.h"
#include "trainer/trainer.h"
#include "trainer/update_work.h"

namespace nibble {
namespace {

// Of several updates, the projections add up; a jump is the last one's.
void add_held(const std::optional<HeldStats>& update, std::optional<HeldStats>& step) {
  if (!update) return;
  if (!step) step.emplace();
  step->projected += update->projected;
  if (update->rescale_jump) step->rescale_jump = update->rescale_jump;
}

// Whether policy_loss() would take it; it does not look at masked tokens.
bool is_finite(const PolicyBatch<float>& inputs) {
  const auto all_finite = [&](std::span<const float> values) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (inputs.mask[i] != 0 && !std::isfinite(values[i])) return false;
    }
    return true;
  };
  return all_finite(inputs.logp) && all_finite(inputs.old_logp) &&
         all_finite(inputs.rollout_logp) && all_finite(inputs.ref_logp) &&
         all_finite(inputs.advantage);
}

}  // namespace

// Figures of one update, of all micro-batches and ranks.
struct Trainer::Sums {
  PolicyLoss loss;
  double entropy = 0.0, diff = 0.0, diff_max = 0.0, kl = 0.0, kl_k1 = 0.0, tokens = 0.0,
         computed = 0.0;
  PositionGap gap;
  std::vector<int64_t> expert_tokens;    // [MoE layers, experts]
  std::vector<SampleSuspicion> samples;  // of this rank

  // Sums over ranks, where `counts` says whether this one's figures are its own. Collective.
  void all_reduce(ProcessGroup& group, bool counts) {
    // A maximum of non-negative floats orders like its bits.
    for (double* most : {&diff_max, &loss.ratio_max}) {
      *most = std::bit_cast<double>(all_reduce_max(group, std::bit_cast<int64_t>(*most)));
    }
    PositionGap::Sums places = gap.sums();
    std::vector<double*> all = {&entropy, &diff, &kl, &kl_k1, &tokens, &computed};
    for (double* value : loss.summed()) all.push_back(value);
    for (double& value : places) all.push_back(&value);
    std::vector<double> loads(expert_tokens.begin(), expert_tokens.end());
    for (double& value : loads) all.push_back(&value);
    std::vector<double> values;
    for (const double* value : all) values.push_back(counts ? *value : 0.0);
    all_reduce_sum(group, values);
    for (size_t i = 0; i < all.size(); ++i) *all[i] = values[i];
    gap = PositionGap(places);
    expert_tokens.assign(loads.begin(), loads.end());
  }
};

TrainMetrics Trainer::train(std::span<const std::vector<SampleGroup>> updates, int64_t step) {
  TrainMetrics metrics;
  metrics.has_reference = needs_reference(step);
  const std::vector<UpdateWork> plan = plan_updates(updates, metrics);
  const bool trains = !warms_up();
  for (size_t u = 0; u < plan.size(); ++u) {
    if (plan[u].totals.num_tokens == 0) {  // weight decay alone is no step
      ++metrics.skipped_updates;
      if (group_.rank() == 0) {
        get_logger("trainer")->warn("step={} update={} is left out: no token of it counts", step,
                                    u);
      }
      continue;
    }
    std::vector<SampleSuspicion> samples;
    run_update(plan[u], {u == 0, trains}, metrics, samples);
    Stopwatch clock;
    const double grad_norm = trains ? gradient_norm() : 0.0;
    metrics.optimizer_ms += clock.restart_ms();
    metrics.update.grad_norm = grad_norm;
    if (critic_) backpropagate_critic(plan[u], *metrics.critic);
    const double gap = u == 0 ? metrics.log_prob_diff_mean : 0.0;  // measured in the first only
    if (refuses(grad_norm, gap, std::move(samples), metrics)) {
      ++metrics.skipped_updates;
      if (metrics.trip->action > GuardAction::kSkip) break;
      continue;
    }
    if (critic_) step_critic(*metrics.critic);
    if (!trains) continue;
    const Step done = take_step(grad_norm);
    guard_.note(grad_norm);
    metrics.update = done.update;
    metrics.changes = done.changes;
    add_held(done.held, metrics.held);
    metrics.optimizer_ms += done.optimizer_ms;
    metrics.pack_ms += done.pack_ms;
  }
  metrics.gathered = weights_.take_bytes();
  if (critic_) metrics.critic->gathered = critic_->take_bytes();
  return metrics;
}

bool Trainer::refuses(double grad_norm, double gap, std::vector<SampleSuspicion> samples,
                      TrainMetrics& metrics) const {
  GuardFigures figures{metrics.loss.loss, grad_norm, gap};
  if (metrics.has_reference) figures.kl = metrics.kl_reference;
  if (metrics.critic) {
    figures.value_loss = metrics.critic->loss.loss;
    figures.critic_grad_norm = metrics.critic->update.grad_norm;
  }
  const std::optional<GuardTrip> trip = guard_.check(figures);
  if (!trip) return false;
  if (!metrics.trip || metrics.trip->action < trip->action) {
    metrics.trip = trip;
    metrics.trip_suspects = counts_figures() ? suspects(std::move(samples), trip->watch)
                                             : std::vector<SampleSuspicion>();
  }
  return trip->action != GuardAction::kWarn;
}

void Trainer::backpropagate_critic(const UpdateWork& work, CriticMetrics& metrics) {
  const Stopwatch clock;
  metrics.loss = critic_->backpropagate(work);
  metrics.update.grad_norm = critic_->gradient_norm();
  metrics.ms += clock.elapsed_ms();
}

void Trainer::step_critic(CriticMetrics& metrics) {
  const Stopwatch clock;
  metrics.update = critic_->take_step(metrics.update.grad_norm);
  metrics.ms += clock.elapsed_ms();
}

void Trainer::run_update(const UpdateWork& work, UpdatePass pass, TrainMetrics& metrics,
                         std::vector<SampleSuspicion>& samples) {
  weights_.zero_gradients();
  Sums sums;
  if (config_.algorithm.routing_replay) {  // ranks without a sample have nothing to count
    sums.expert_tokens.resize(
        static_cast<size_t>(spec_.config.num_moe_layers() * spec_.config.moe.num_experts));
  }
  for (size_t b = 0; b < work.batches.size(); ++b) {
    run_micro_batch(work, b, pass.trains, sums, metrics);
  }
  samples = std::move(sums.samples);
  sums.all_reduce(group_, counts_figures());
  metrics.loss = sums.loss;
  const double tokens = std::max(1.0, sums.tokens);
  metrics.entropy = sums.entropy / tokens;
  metrics.kl_reference = sums.kl / tokens;
  metrics.kl_reference_k1 = sums.kl_k1 / tokens;
  metrics.response_tokens += static_cast<int64_t>(sums.tokens);
  metrics.computed_tokens += static_cast<int64_t>(sums.computed);
  if (!pass.is_first) return;
  if (config_.algorithm.routing_replay) {
    metrics.experts = expert_load(sums.expert_tokens, spec_.config.moe.num_experts);
  }
  metrics.log_prob_diff_mean = sums.diff / tokens;
  metrics.log_prob_diff_max = sums.diff_max;
  metrics.gap_by_position = sums.gap.sums();
}

void Trainer::run_micro_batch(const UpdateWork& work, size_t index, bool trains, Sums& sums,
                              TrainMetrics& metrics) {
  const at::AutoGradMode with_gradients(trains);
  const MicroBatch& batch = work.batches[index];
  const bool with_reference = metrics.has_reference;
  Stopwatch clock;
  std::vector<float> reference;
  if (!work.reference.empty()) {
    reference = work.reference[index];
  } else if (with_reference) {
    reference = forward_log_probs(reference_->model(), batch.packed);
  }
  metrics.reference_ms += clock.restart_ms();

  const bool replays = config_.algorithm.routing_replay && !batch.is_idle;
  if (replays) count_experts(batch, spec_.config.moe.num_experts, sums.expert_tokens);
  const TapeResult result = run_tape(own_model(), batch.packed, routes_of(batch));
  const std::vector<float> current = values_of(result.log_prob);
  const std::vector<float> entropy = values_of(result.entropy);
  const size_t count = current.size();
  // Taken before the first update, the trainer's own log-probabilities are the old ones. With
  // several updates a pass has computed them, or the rollout's are the same bits.
  const bool is_own = !config_.algorithm.use_rollout_logprobs && work.old_logp.empty() &&
                      config_.optimizer.steps_per_rollout == 1;
  const std::span<const float> old = is_own                  ? current
                                     : work.old_logp.empty() ? batch.rollout_log_prob
                                                             : work.old_logp[index];
  const PolicyLossConfig& loss = config_.algorithm.loss;
  std::vector<float> grad(count, 0.0f), grad_entropy;
  const PolicyBatch<float> inputs{current,         old,        batch.rollout_log_prob, reference,
                                  batch.advantage, batch.mask, batch.sample_begin};
  if (is_finite(inputs)) {
    sums.loss += policy_loss<float>(inputs, loss, work.totals, grad);
    if (loss.entropy_coef != 0.0) {
      grad_entropy.resize(count);
      sums.loss.loss +=
          entropy_bonus({entropy, batch.mask, batch.sample_begin}, loss, work.totals, grad_entropy);
    }
  } else {
    // No loss can be taken. The other ranks wait in this pass's gathers; a guard refuses the
    // update.
    sums.loss.loss = std::numeric_limits<double>::quiet_NaN();
  }
  const size_t first_sample = sums.samples.size();
  for (const SampleName& name : batch.samples) {
    sums.samples.push_back({name.prompt_id, name.sample_index});
  }
  std::vector<double> own_tokens(batch.samples.size(), 0.0);
  size_t sample = 0;
  for (size_t i = 0; i < count; ++i) {
    while (static_cast<int64_t>(i) >= batch.sample_begin[sample + 1]) ++sample;
    if (batch.mask[i] == 0) continue;
    SampleSuspicion& suspicion = sums.samples[first_sample + sample];
    const double diff =
        std::fabs(static_cast<double>(current[i]) - static_cast<double>(batch.rollout_log_prob[i]));
    sums.diff += diff;
    sums.gap.add(static_cast<int64_t>(i) - batch.sample_begin[sample], diff);
    sums.diff_max = std::max(sums.diff_max, diff);
    suspicion.gap = std::max(suspicion.gap, diff);
    suspicion.pull += std::fabs(static_cast<double>(grad[i]));
    own_tokens[sample] += 1.0;
    suspicion.is_finite =
        suspicion.is_finite && std::isfinite(diff) && std::isfinite(batch.advantage[i]);
    sums.entropy += static_cast<double>(entropy[i]);
    if (with_reference) {
      const double kl = kl_term(KlEstimator::kK3, current[i], reference[i]).value;
      sums.kl += kl;
      suspicion.kl += kl;
      sums.kl_k1 += kl_term(KlEstimator::kK1, current[i], reference[i]).value;
    }
    sums.tokens += 1.0;
  }
  for (size_t s = 0; s < own_tokens.size(); ++s) {
    sums.samples[first_sample + s].kl /= std::max(1.0, own_tokens[s]);
  }
  if (!batch.is_idle) sums.computed += static_cast<double>(batch.packed.tokens.size());
  if (trains) run_backward({{result.log_prob, grad}, {result.entropy, grad_entropy}}, weights_);
  metrics.forward_backward_ms += clock.elapsed_ms();
}

}  // namespace nibble
