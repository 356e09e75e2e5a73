#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/task_thread.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/backend.h"
#include "core/ops/numerics.h"
#include "core/spec/joint_parameters.h"
#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/tokenizer.h"
#include "rollout/engine/engine.h"
#include "rollout/engine_rank.h"
#include "rollout/group_scorer.h"
#include "rollout/head_coach.h"
#include "rollout/kept_samples.h"
#include "rollout/reward_config.h"
#include "rollout/rollout_config.h"
#include "rollout/rollout_group.h"
#include "weight_sync/manifest.h"

namespace nibble {

/// A GPU that the engine shares with a trainer of the same process (cluster.placement: colocated).
struct SharedGpu {
  int64_t free_bytes = 0;     ///< before either of them took any
  int64_t trainer_bytes = 0;  ///< that the trainer takes or will take
  int weight_buffers = 2;     ///< whole models in INT4 of the engine's own; 0: the trainer's serve
};

struct RolloutWorkerOptions {
  std::filesystem::path model;    ///< Hugging Face directory: architecture, tokenizer
  std::optional<LoraShape> lora;  ///< adapters that are published with its weights
  RolloutConfig rollout;
  RewardConfig reward;
  std::vector<std::string> reward_command;  ///< nibble-reward and its argument
  const ops::Backend* gpu = nullptr;        ///< a CUDA backend, borrowed; null: the CPU
  std::optional<SharedGpu> shared_gpu;      ///< for rollout.kv_tokens: 0
  int gpu_sharers = 1;                      ///< workers on this GPU; each plans with its part
  Numerics numerics = Numerics::kExact;     ///< of the GPU
  QuantizationPlan plan;                    ///< how weights are served
  std::string grid = kDerivedGrid;          ///< the rule that made their codes
  std::optional<DraftPart> draft;           ///< served beside it: rollout.draft_model
  bool wants_routes = false;                ///< samples keep the experts chosen for them (R3)
  bool in_place = false;                    ///< one weight buffer: new weights overwrite the old
  EngineRank* rank = nullptr;               ///< of an engine of several, borrowed; or null
};

/// Generates groups of samples with one engine, of several ranks the first (the others:
/// FollowingWorker), scores them, and keeps those of training until they are released. What is
/// submitted is computed while advance() runs, and waits otherwise. All methods but finish() and
/// kept() belong to one thread, the one that made it.
class RolloutWorker {
 public:
  explicit RolloutWorker(RolloutWorkerOptions options);

  /// Swaps the weights in (JointParameters); returns the milliseconds the engine could not work
  /// meanwhile: since release_weights(), if it was called. A version that is served already stays.
  double set_weights(std::shared_ptr<const ResidentWeights> weights, int64_t version);
  /// Of the weights last set; 0: none yet.
  int64_t version() const { return engine_->version(); }
  /// Lets go of the weights, which are about to be overwritten.
  void release_weights();

  /// Queues a job's groups. One that is under way begins anew. Throws Error{kFailedPrecondition} if
  /// another version is served, Error{kInvalidArgument} for a prompt that is too long,
  /// Error{kResourceExhausted} if the engine's queue is full; then nothing is queued.
  void submit(const RolloutJob& job);
  /// Computes until a group is whole, or `until`, waiting for work. Between two steps of the
  /// engine `thread`, this one, lets others in, who may swap or release the weights; without
  /// weights it waits for them. What a step throws ends all groups that are under way.
  DrawnGroups advance(Deadline until, TaskThread& thread);
  /// Ends what is under way of these groups of training, and forgets what is kept of them.
  void release(std::span<const uint64_t> prompt_ids);

  /// Scores what was drawn, and keeps it if it is of training. Any thread.
  RolloutOutcome finish(DrawnGroups drawn);
  /// Any thread, like the next.
  const KeptSamples& kept() const { return kept_; }
  void keep(SampleGroup group) { kept_.keep(std::move(group)); }

  const ModelSpec& spec() const { return spec_; }

 private:
  // A group some of whose samples are not drawn yet; that of sample i is request first id + i.
  struct OpenGroup {
    DrawnGroup group;
    int64_t missing = 0;
  };
  using OpenGroups = std::map<uint64_t, OpenGroup>;  // by the first request's id

  void take_finished(DrawnGroups& drawn);
  template <typename Which>
  void end_groups(Which which);

  const RolloutWorkerOptions options_;
  const ModelSpec spec_;
  const std::optional<ModelSpec> draft_spec_;  // nothing: no draft model
  const Tokenizer tokenizer_;
  const PromptEncoder encoder_;                     // borrows tokenizer_
  std::shared_ptr<const DraftHead> head_;           // shared: with what guesses; null: none
  std::unique_ptr<HeadCoach> coach_;                // null: no head is trained
  std::shared_ptr<const ResidentWeights> weights_;  // shared: as the engine's; null: none
  int64_t draft_version_ = 0;       // a draft model's weights come anew with every swap
  std::unique_ptr<Engine> engine_;  // after what it borrows from
  OpenGroups open_;
  uint64_t next_request_id_ = 1;
  std::optional<Stopwatch> without_weights_;  // since they were released
  GroupScorer scorer_;
  KeptSamples kept_;
};

}  // namespace nibble
