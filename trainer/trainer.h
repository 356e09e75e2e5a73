#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/comm/process_group.h"
#include "core/data/sample.h"
#include "core/kernels/rope.h"
#include "core/models/decoder.h"
#include "core/models/packing.h"
#include "core/ops/backend.h"
#include "core/spec/joint_parameters.h"
#include "trainer/algo/policy_loss.h"
#include "trainer/algo/position_gap.h"
#include "trainer/batching.h"
#include "trainer/config/critic_config.h"
#include "trainer/config/guard_config.h"
#include "trainer/config/train_config.h"
#include "trainer/critic.h"
#include "trainer/frozen_model.h"
#include "trainer/guard.h"
#include "trainer/parallel/gathered_weights.h"
#include "trainer/routing_replay.h"
#include "trainer/state/checkpoint_snapshot.h"
#include "trainer/state/optimizer_state.h"
#include "trainer/state/train_checkpoint.h"

namespace nibble {

struct TapeResult;
struct TokenRecord;
struct UpdateWork;

struct TrainerConfig {
  std::filesystem::path model;  ///< Hugging Face directory the masters start from
  ModelInit init = ModelInit::kPretrained;
  /// Adapters that are trained alone; nothing: all parameters are. Needs one plan for both sides.
  std::optional<LoraShape> lora;
  std::filesystem::path base;       ///< directory of the weights that adapters leave as they are
  uint64_t seed = 1;                ///< of a random start, and of the rounding of BF16 moments
  std::filesystem::path reference;  ///< BF16 directory of the reference
  std::filesystem::path teacher;    ///< directory of a model of the same vocabulary; empty: none
  bool offload_reference = false;   ///< ShardHome::kHost for reference and teacher
  QuantizationPlan train_plan;      ///< what the forward pass multiplies with
  QuantizationPlan serve_plan;      ///< what is published; the same under QAT
  std::optional<DraftPart> draft;   ///< published with it
  /// INT4 checkpoint whose codes the masters start in and whose scales are held; empty: scales are
  /// derived at every packing. Needs QAT and BF16 weights in `model`.
  std::filesystem::path calibrated;
  quant::CellPlace calibrated_place = quant::CellPlace::kShifted;
  /// Optimizer steps after which held scales are derived anew; 0: never.
  int64_t rescale_every = 0;
  AlgorithmConfig algorithm;
  OptimizerConfig optimizer;
  /// Of algorithm.advantage: gae, its `model` named; nothing: there is none.
  std::optional<CriticConfig> critic;
  double temperature = 1.0;              ///< of sampling; log-probabilities are taken there
  int64_t max_tokens_per_device = 4096;  ///< of one micro-batch, of each rank that shares it
  Recompute recompute = Recompute::kNone;
  int64_t max_positions = 2048;  ///< longest prompt + response
  int64_t max_new_tokens = 0;    ///< longest response; for overlong penalties
  GuardsConfig guards;
  bool exact_rollout = true;  ///< with one packing, its log-probabilities are ours
};

/// What holding scales did in a step, over all ranks.
struct HeldStats {
  int64_t projected = 0;  ///< masters that an update had moved out of the range of their codes
  /// Share of codes that changed when scales were derived anew; nothing if they were not.
  std::optional<double> rescale_jump;
};

/// What training on one rollout did. Sums run over all ranks, so every rank returns the same.
struct TrainMetrics {
  PolicyLoss loss;  ///< of the last update
  UpdateStats update;
  double entropy = 0.0;             ///< mean over response tokens, nats
  double log_prob_diff_mean = 0.0;  ///< |trainer - rollout| over response tokens, first update
  double log_prob_diff_max = 0.0;
  PositionGap::Sums gap_by_position{};  ///< the same, by place in the response
  double kl_reference = 0.0;            ///< k3 against the reference, mean over response tokens
  double kl_reference_k1 = 0.0;         ///< the same by k1
  bool has_reference = false;
  std::optional<ExpertLoad> experts;  ///< of the rollout's choices, if they are replayed
  int64_t response_tokens = 0;
  int64_t computed_tokens = 0;  ///< prompts once per group
  PackChanges changes;
  std::optional<HeldStats> held;  ///< over all updates, if scales are held
  GatherBytes gathered;
  // The optimizer's pass packs too; pack_ms is what is left to do: a second plan, counting changes.
  double reference_ms = 0.0, forward_backward_ms = 0.0, optimizer_ms = 0.0, pack_ms = 0.0;
  double kl_teacher = 0.0;  ///< k1 of the old log-probabilities, mean over response tokens
  bool has_teacher = false;
  double teacher_ms = 0.0;
  std::optional<CriticMetrics> critic;
  double old_log_probs_ms = 0.0;  ///< of a pass before the first update, where one is needed
  int64_t skipped_updates = 0;
  std::optional<GuardTrip> trip;               ///< the most severe of the step
  std::vector<SampleSuspicion> trip_suspects;  ///< this rank's
};

/// Cross-entropy of given tokens. Sums run over all ranks, so every rank returns the same.
struct TokenLoss {
  double loss = 0.0;     ///< mean over target tokens of -log p, nats
  double entropy = 0.0;  ///< mean over target tokens, nats
  int64_t target_tokens = 0;
  int64_t computed_tokens = 0;
};

/// What one supervised step did.
struct SupervisedMetrics {
  TokenLoss tokens;  ///< under the weights before the update
  UpdateStats update;
  PackChanges changes;
  std::optional<HeldStats> held;
  GatherBytes gathered;
  double forward_backward_ms = 0.0, optimizer_ms = 0.0, pack_ms = 0.0;
};

/// One trainer rank: float32 masters of its rows, the model's forward and backward passes over
/// gathered packed weights, AdamW. All ranks call the same methods in the same order; ranks of
/// one tensor or context group pass the same samples. One thread.
class Trainer {
 public:
  /// Loads masters and, if it may be needed, the reference, on `backend`'s device. `group` moves
  /// host bytes among all ranks; `groups` bytes of the device. Both and `backend` must outlive
  /// this. Throws Error{kInvalidArgument} if the mesh does not fit the model, or naming what of a
  /// calibrated start does not.
  Trainer(TrainerConfig config, ProcessGroup& group, const MeshGroups& groups,
          const ops::Backend& backend);
  /// On the CPU.
  Trainer(TrainerConfig config, const MeshGroups& groups);
  ~Trainer();

  /// Trains on one rollout: one optimizer step per element of `updates`, each this rank's share of
  /// that step's global batch. Collective. `step` decides whether the KL is measured.
  TrainMetrics train(std::span<const std::vector<SampleGroup>> updates, int64_t step);

  /// One supervised optimizer step (algorithm.loss: sft) on this rank's share of the global batch;
  /// the share may be empty, the batch not. The loss is the mean over all ranks' target tokens.
  /// Collective.
  SupervisedMetrics train_records(std::span<const TokenRecord* const> records);
  /// The same loss without a step. Collective.
  TokenLoss evaluate_records(std::span<const TokenRecord* const> records);

  /// Log-probabilities of one sequence's tokens 1..n-1 under the training weights. Collective.
  std::vector<float> log_probs(std::span<const int32_t> ids);

  /// This rank's rows as they are to be served, those of a draft model behind them, on the
  /// backend's device. Never written to while somebody holds them; a later train() makes new ones.
  std::shared_ptr<const PackedShards> serving_shards() const { return serving_; }
  const ShardLayout& serving_layout() const { return serve_layout_; }
  const ModelSpec& spec() const { return spec_; }

  /// This rank's part of a checkpoint of now; must not outlive this. Updates and gradient norms of
  /// `progress` are filled in.
  std::unique_ptr<const CheckpointSnapshot> snapshot(const TrainProgress& progress) const;
  /// A whole checkpoint, at once. Collective.
  void save(const std::filesystem::path& directory, const TrainProgress& progress);
  /// Throws Error{kFailedPrecondition} if one of checkpoint and configuration holds scales and the
  /// other does not, Error{kInvalidArgument} if they differ in adapters, Error{kDataLoss} if those
  /// were trained beside other weights.
  TrainProgress load(const std::filesystem::path& directory);

 private:
  struct Sums;
  struct RecordPass;
  bool needs_reference(int64_t step) const;
  int64_t micro_batch_tokens() const {
    return config_.max_tokens_per_device * groups_.mesh().context;
  }
  bool counts_figures() const { return groups_.counts_figures(); }
  // Whether only the critic learns yet: by its own age, which may be less than the run's.
  bool warms_up() const {
    return critic_ &&
           critic_->updates() < config_.critic->warmup_steps * config_.optimizer.steps_per_rollout;
  }
  struct Step {
    UpdateStats update;
    PackChanges changes;
    std::optional<HeldStats> held;
    double optimizer_ms = 0.0, pack_ms = 0.0;
  };
  void repack();
  void use(std::shared_ptr<const PackedShards> packing, PackChanges* changes);
  double gradient_norm();
  Step take_step(double grad_norm);
  std::shared_ptr<const PackedShards> rescale(const PackedShards& held, HeldStats& stats);
  void sum_over_ranks(PackChanges& changes);
  bool has_one_plan() const { return config_.train_plan.quantized == config_.serve_plan.quantized; }
  DeviceKind state_device() const;
  FixedParameters fixed_parameters(bool with_riders) const;
  OptimizerState make_state() const;
  void load_masters();
  void draw_adapters();
  OrderedJson checkpoint_config() const;
  void load_frozen_models();
  TapeModel own_model() { return {spec_, weights_, rope_}; }
  // Whether the rollout's log-probabilities are, at the weights it sampled from, this one's bits.
  bool has_exact_rollout() const { return config_.exact_rollout && has_one_plan(); }
  // Fills `batches` up to the longest list of all ranks, and returns what all ranks' weigh.
  LossTotals agree_on(std::vector<MicroBatch>& batches);
  std::vector<UpdateWork> plan_updates(std::span<const std::vector<SampleGroup>> updates,
                                       TrainMetrics& metrics);
  void value_tokens(std::span<UpdateWork> plan, TrainMetrics& metrics);
  struct UpdatePass {
    bool is_first = false;  // of the rollout
    bool trains = true;     // false: figures only
  };
  void backpropagate_critic(const UpdateWork& work, CriticMetrics& metrics);
  void step_critic(CriticMetrics& metrics);
  void run_update(const UpdateWork& work, UpdatePass pass, TrainMetrics& metrics,
                  std::vector<SampleSuspicion>& samples);
  // Whether a guard keeps the update from being made; notes in any case what it has to say.
  bool refuses(double grad_norm, double gap, std::vector<SampleSuspicion> samples,
               TrainMetrics& metrics) const;
  // `trains`: leaves gradients.
  void run_micro_batch(const UpdateWork& work, size_t index, bool trains, Sums& sums,
                       TrainMetrics& metrics);
  RecordPass plan_pass(std::span<const TokenRecord* const> records);
  void run_records(RecordPass& pass, bool trains);
  TokenLoss finish_pass(const RecordPass& pass);
  // A pass's result, once nothing that it came from has failed.
  std::vector<float> values_of(const at::Tensor& tensor) const;
  std::vector<float> forward_log_probs(const TapeModel& model, const PackedBatch& batch,
                                       std::vector<at::Tensor> replay = {});
  // What run_tape() replays; frozen models do not.
  std::vector<at::Tensor> routes_of(const MicroBatch& batch) const;
  TapeResult run_tape(const TapeModel& model, const PackedBatch& batch,
                      std::vector<at::Tensor> replay = {});

  const TrainerConfig config_;
  ProcessGroup& group_;
  const MeshGroups& groups_;
  const ops::Backend& backend_;
  const ModelSpec spec_;
  const ShardLayout train_layout_;
  const ShardLayout serve_layout_;
  std::shared_ptr<const kernels::RopeTable> rope_;
  OptimizerState state_;
  Guard guard_;
  GatheredWeights weights_;
  std::optional<FrozenModel> reference_;
  std::optional<FrozenModel> teacher_;
  std::optional<Critic> critic_;
  std::string base_digest_;  // with adapters: of what is frozen
  PackBuffers train_buffers_;
  PackBuffers serve_buffers_;                     // of a plan that differs from training's
  std::shared_ptr<const PackedShards> training_;  // shared: the sender may still ship it
  std::shared_ptr<const PackedShards> serving_;
};

}  // namespace nibble
