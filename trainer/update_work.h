#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/comm/process_group.h"
#include "trainer/algo/aggregation.h"
#include "trainer/batching.h"
#include "trainer/config/train_config.h"

namespace nibble {

/// One optimizer step on this rank: its micro-batches, and what is known of them before the first
/// step of the rollout.
struct UpdateWork {
  std::vector<MicroBatch> batches;            ///< as many as on every other rank
  LossTotals totals;                          ///< of all ranks
  std::vector<std::vector<float>> old_logp;   ///< [batches] by the trainer; empty: not computed
  std::vector<std::vector<float>> reference;  ///< [batches]; empty: not computed
  std::vector<std::vector<float>> teacher;    ///< [batches]; empty: there is none
  std::vector<std::vector<float>> values;     ///< [batches] by the critic; empty: there is none
  std::vector<std::vector<double>> returns;   ///< [batches] that the critic is to learn
};

/// Whether the trainer must compute old log-probabilities in a pass of its own before it updates
/// for the first time. It need not where the rollout's are wanted, where they are the same bits
/// (`is_exact`: exact numerics, one packing for both sides), or where there is one update, whose
/// own forward pass gives them in time unless advantages are made of them.
bool needs_old_pass(const AlgorithmConfig& config, int64_t updates, bool is_exact);

/// Turns the scores of samples, which stand in the micro-batches' advantages, into advantages of
/// their tokens (algorithm.advantage: reinforce_pp, reinforce_pp_baseline): rewards of tokens with
/// the KL of the old log-probabilities to the reference (kl_estimator, weight kl_reward_coef),
/// normalized over all updates of the rollout and all ranks, as one batch. Masked tokens do not
/// count in the mean and variance.
///   work    with `reference` where kl_reward_coef > 0; the old log-probabilities are old_logp, or
///           where that is empty the rollout's
///   counts  false on a rank whose samples another one has too: it adds nothing to the sums
/// Collective.
void token_advantages(std::span<UpdateWork> work, const AlgorithmConfig& config,
                      ProcessGroup& group, bool counts);

/// What a critic's values were worth.
struct ValueFigures {
  double mean = 0.0;  ///< over unmasked tokens of all updates and ranks
  /// 1 - Var(return - value) / Var(return) over them; 0 where returns do not vary.
  double explained_variance = 0.0;
};
/// Advantages and returns of tokens by `values` (algorithm.advantage: gae; gae.h), in place of the
/// samples' scores. A token's reward is less the KL as in token_advantages(), and has the score at
/// a sample's last unmasked token. Advantages are normalized, as PPO's are, over all updates of the
/// rollout and all ranks as one batch; returns are not. `counts` as above. Collective.
ValueFigures value_advantages(std::span<UpdateWork> work, const AlgorithmConfig& config,
                              ProcessGroup& group, bool counts);

/// Advantages of tokens by `teacher` (algorithm.advantage: opd; distillation.h), masked ones 0;
/// returns their negative mean over all updates and ranks: k1, an estimate of KL(student ||
/// teacher), nats. `counts` as above. Collective.
double teacher_advantages(std::span<UpdateWork> work, ProcessGroup& group, bool counts);

}  // namespace nibble
