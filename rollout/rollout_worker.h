#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/json.h"
#include "core/base/task_thread.h"
#include "core/data/sample.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/backend.h"
#include "core/ops/numerics.h"
#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/tokenizer.h"
#include "rollout/engine/engine.h"
#include "rollout/engine_rank.h"
#include "rollout/head_coach.h"
#include "rollout/reward/reward_process.h"
#include "rollout/rollout_config.h"
#include "weight_sync/manifest.h"

namespace nibble {

/// A prompt to sample from.
struct RolloutPrompt {
  uint64_t prompt_id = 0;  ///< names it in random draws; unique within a step
  Json content;            ///< a string as it is, or chat messages through the model's template
  Json label;
};

/// What to generate.
struct RolloutJob {
  int64_t step = 0;
  int64_t weight_version = 0;  ///< that must be served
  std::vector<RolloutPrompt> prompts;
  int64_t samples_per_prompt = 1;
  bool evaluation = false;  ///< samples are scored and not kept
  uint64_t seed = 0;
  kernels::SamplingParams sampling;
  int64_t max_new_tokens = 1;
};

/// One scored sample, for the coordinator's eyes: texts are capped.
struct SampleReport {
  uint64_t prompt_id = 0;
  Sample sample;
  std::string prompt_text;
  std::string response_text;
  std::optional<std::string> error;  ///< why it could not be scored; it is dropped
  RouteShape route_shape;            ///< of its routes and the next
  std::vector<uint8_t> prompt_routes;
};

struct RolloutOutcome {
  std::vector<SampleReport> samples;            ///< by prompt, then sample
  std::map<uint64_t, int64_t> computed_tokens;  ///< of each group, as training will compute it
  double generate_ms = 0.0;
  double reward_ms = 0.0;
  int64_t generated_tokens = 0;
  int64_t prefill_tokens = 0;
  EngineTotals engine;  ///< what the engine did for it
};

/// A GPU that the engine shares with a trainer of the same process (cluster.placement: colocated).
struct SharedGpu {
  int64_t free_bytes = 0;     ///< before either of them took any
  int64_t trainer_bytes = 0;  ///< that the trainer takes or will take
  int weight_buffers = 2;     ///< whole models in INT4 of the engine's own; 0: the trainer's serve
};

struct RolloutWorkerOptions {
  std::filesystem::path model;  ///< Hugging Face directory: architecture, tokenizer
  RolloutConfig rollout;
  RewardConfig reward;
  std::vector<std::string> reward_command;  ///< nibble-reward and its argument
  const ops::Backend* gpu = nullptr;        ///< a CUDA backend, borrowed; null: the CPU
  std::optional<SharedGpu> shared_gpu;      ///< for rollout.kv_tokens: 0
  int gpu_sharers = 1;                      ///< workers on this GPU; each plans with its part
  Numerics numerics = Numerics::kExact;     ///< of the GPU
  QuantizationPlan plan;                    ///< how weights are served
  std::string grid = kDerivedGrid;          ///< the rule that made their codes
  bool wants_routes = false;                ///< samples keep the experts chosen for them (R3)
  bool in_place = false;                    ///< one weight buffer: new weights overwrite the old
  EngineRank* rank = nullptr;               ///< of an engine of several, borrowed; or null
};

/// Shared: a trainer may still be fetching it when its step is forgotten.
using KeptGroup = std::shared_ptr<const SampleGroup>;

/// Generates and scores groups of samples with one engine, of several ranks the first (the others:
/// FollowingWorker); keeps those of training steps until the
/// trainers have fetched them. All methods but fetch() belong to one thread, the one that made it.
class RolloutWorker {
 public:
  explicit RolloutWorker(RolloutWorkerOptions options);

  /// Swaps the weights in; returns the milliseconds the engine could not work meanwhile: since
  /// release_weights(), if it was called. A version that is served already stays.
  double set_weights(std::shared_ptr<const ResidentWeights> weights, int64_t version);
  /// Of the weights last set; 0: none yet.
  int64_t version() const { return engine_->version(); }
  /// Lets go of the weights, which are about to be overwritten.
  void release_weights();
  /// Between two steps of the engine `thread`, this one, lets others in, who may swap or release
  /// the weights; without weights it waits for them. Throws Error{kFailedPrecondition} if another
  /// version is served, Error{kDeadlineExceeded}.
  RolloutOutcome generate(const RolloutJob& job, Deadline deadline, TaskThread& thread);
  /// Groups of a step. Any thread. Throws Error{kNotFound} naming the step or prompt.
  std::vector<KeptGroup> fetch(int64_t step, const std::vector<uint64_t>& prompt_ids) const;

  const ModelSpec& spec() const { return spec_; }

 private:
  struct Running;
  std::vector<Completion> run_engine(const RolloutJob& job, Running& running, Deadline deadline,
                                     TaskThread& thread);
  void score(const RolloutJob& job, Running& running, RolloutOutcome& outcome);
  void keep(const RolloutJob& job, Running& running, RolloutOutcome& outcome);

  const RolloutWorkerOptions options_;
  const ModelSpec spec_;
  const Tokenizer tokenizer_;
  const PromptEncoder encoder_;                     // borrows tokenizer_
  std::shared_ptr<const DraftHead> head_;           // shared: with what guesses; null: none
  std::unique_ptr<HeadCoach> coach_;                // null: no head is trained
  std::shared_ptr<const ResidentWeights> weights_;  // shared: as the engine's; null: none
  std::unique_ptr<Engine> engine_;                  // after what it borrows from
  std::unique_ptr<RewardProcess> rewards_;
  uint64_t next_request_id_ = 1;
  std::optional<Stopwatch> without_weights_;  // since they were released
  mutable std::mutex mutex_;
  std::map<int64_t, std::map<uint64_t, KeptGroup>> kept_;  // guarded by mutex_; by step
};

}  // namespace nibble
