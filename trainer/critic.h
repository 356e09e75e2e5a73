#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/kernels/rope.h"
#include "core/models/decoder.h"
#include "core/models/packing.h"
#include "core/models/recompute.h"
#include "core/ops/backend.h"
#include "trainer/algo/value_loss.h"
#include "trainer/parallel/gathered_weights.h"
#include "trainer/state/checkpoint_snapshot.h"
#include "trainer/state/optimizer_state.h"

namespace nibble {

struct TrainerConfig;
struct UpdateWork;

/// What the critic did in a step. Sums run over all ranks, so every rank has the same.
struct CriticMetrics {
  ValueLoss loss;                   ///< of the last update
  UpdateStats update;               ///< likewise; without a learning rate if a guard refused it
  double value_mean = 0.0;          ///< over response tokens, before the first update
  double explained_variance = 0.0;  ///< of the returns by these values
  GatherBytes gathered;
  double ms = 0.0;  ///< all of the above
};

/// The value model of PPO: a decoder of its own with a head of one row, trained beside the model on
/// the same ranks, which share it the same way. Weights are BF16, masters and AdamW's state as the
/// model's. Nothing of it is quantized or published. All ranks call the same methods in the same
/// order; tensor ranks pass the same samples. One thread.
class Critic {
 public:
  /// Starts from `config.critic->model`, its head from zeros. The groups and `backend` must outlive
  /// this. Throws Error{kInvalidArgument} if the mesh does not fit the model.
  ///   group       moves host bytes among all ranks
  ///   state_home  where masters and moments are
  Critic(const TrainerConfig& config, DeviceKind state_home, ProcessGroup& group,
         const MeshGroups& groups, const ops::Backend& backend);

  /// float32 [N]: the value before each target of a batch, of the state that predicts it; no
  /// gradients. Collective.
  std::vector<float> values(const PackedBatch& batch);

  /// Leaves the gradients of an update's value loss (algorithm.aggregation), and returns it of all
  /// ranks. Collective.
  ///   work  with `values` and `returns`
  ValueLoss backpropagate(const UpdateWork& work);
  /// Of these gradients, over all ranks. Collective.
  double gradient_norm();
  /// One AdamW step with them. Collective; errors as OptimizerState::update().
  UpdateStats take_step(double grad_norm);

  /// Optimizer steps that it has taken.
  int64_t updates() const { return state_.updates; }
  /// What its ring moved since the last call.
  GatherBytes take_bytes() { return weights_.take_bytes(); }

  /// Goes on from a checkpoint's critic; where it has none, begins anew and says so. Errors as
  /// load_critic_checkpoint().
  void load(const std::filesystem::path& checkpoint);
  /// What a checkpoint keeps. Borrows from this.
  StateSource state() const { return {layout_, state_, config_json_}; }

 private:
  void start();
  void pack();
  at::Tensor run(const PackedBatch& batch);
  // A pass's values by row, once nothing that they came from has failed.
  std::vector<float> values_of(const at::Tensor& values) const;

  const std::filesystem::path directory_;
  const OptimizerConfig optimizer_;
  const double value_clip_;
  const Aggregation aggregation_;
  const Recompute recompute_;
  ProcessGroup& group_;
  const MeshGroups& groups_;
  const ops::Backend& backend_;
  const std::string config_json_;
  const ModelSpec spec_;
  const ShardLayout layout_;
  const std::shared_ptr<const kernels::RopeTable> rope_;  // shared: with the tape
  const DeviceKind state_home_;
  const uint64_t rounding_seed_;
  OptimizerState state_;
  PackBuffers buffers_;
  GatheredWeights weights_;
};

}  // namespace nibble
