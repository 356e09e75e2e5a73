#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/kernels/parallel.h"
#include "core/models/activation_type.h"
#include "core/models/decoder.h"
#include "core/ops/weight_source.h"
#include "rollout/engine/engine_config.h"
#include "rollout/engine/request.h"
#include "rollout/engine/scheduler.h"
#include "rollout/engine/step_runner.h"
#include "rollout/engine/weighted_drafter.h"

namespace nibble {

/// Generates samples by continuous batching: decodes and chunks of prompts in one step, a group's
/// prompt computed once. A sample's tokens and log-probabilities are those of the trainer's
/// TapeExecutor to the bit, whatever else runs, however prompts are cut and work is split.
/// One thread calls every method; set_weights() between two steps is the step boundary.
class Engine {
 public:
  /// Allocates everything. Throws Error{kInvalidArgument} naming the field of `config` that is out
  /// of range.
  /// If config.max_draft_tokens says so, tokens are guessed: by `drafter`, and by `draft_model` (a
  /// model of its own, or a head) where that one is surer (ChainedDrafter); with neither, by a
  /// LookupDrafter. Throws Error{kInvalidArgument} also if nothing is to be guessed and there is a
  /// draft model, or if its vocabulary, or a head's width, is not the model's.
  Engine(const ModelSpec& spec, const EngineConfig& config, const StepRunnerFactory& make_runner,
         std::unique_ptr<Drafter> drafter = nullptr,
         std::unique_ptr<WeightedDrafter> draft_model = nullptr);
  /// On the CPU. `parallel` must outlive the engine.
  Engine(const ModelSpec& spec, const EngineConfig& config, const kernels::Parallel& parallel,
         ActivationType activations = ActivationType::kFloat32,
         std::unique_ptr<Drafter> drafter = nullptr,
         std::unique_ptr<WeightedDrafter> draft_model = nullptr);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues requests, all or none (kQueueFull). Those of one call with the same prompt_id and
  /// prompt share the prompt's computation and cache. Throws Error{kInvalidArgument} naming the
  /// request that could never be served or whose id is in use.
  [[nodiscard]] SubmitOutcome submit(std::vector<GenerateRequest> requests);

  /// Ends a request with what it has, to be taken as aborted; false if no unfinished request has
  /// this id.
  bool abort(uint64_t id);

  /// Serves `weights` from the next step on (shared: the publisher may hold on to them too; the
  /// engine lets go at the next swap). Throws Error{kInvalidArgument} if `version` is not higher
  /// than the last, or, after release_weights(), lower, or naming the tensor whose shape is not the
  /// model's.
  void set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version,
                   KvPolicy policy = KvPolicy::kKeep);

  /// The draft model guesses with `weights` from the next step on. Its versions are its own: no
  /// token carries them. Throws as WeightedDrafter::set_weights(), and Error{kFailedPrecondition}
  /// if there is no draft model.
  void set_draft_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version);

  /// Lets go of them, which are about to be overwritten; nothing is guessed with them until the
  /// next set_draft_weights(). Throws as that.
  void release_draft_weights();

  /// Lets go of the weights, which are about to be overwritten; requests stay, and step() refuses
  /// until the next set_weights().
  void release_weights();
  bool has_weights() const { return weights_ != nullptr; }

  /// A paused engine keeps its requests, their cache and its weights and computes nothing; all
  /// other methods work as ever, so weights may be swapped meanwhile. What runs goes on with
  /// resume() as if nothing had been. Either may be called again.
  void pause() { is_paused_ = true; }
  void resume() { is_paused_ = false; }
  bool is_paused() const { return is_paused_; }

  /// Computes one step; returns its number of tokens, 0 if there is no work or while it is paused.
  /// Throws Error{kFailedPrecondition} while it has no weights, and if the weights give a
  /// log-probability that is not finite; the step then counts as not done.
  int64_t step();

  bool has_work() const { return scheduler_.has_work(); }
  /// Finished requests, in the order in which they finished.
  std::vector<Completion> take_finished();
  EngineStats stats() const { return scheduler_.stats(); }
  const EngineConfig& config() const { return config_; }
  int64_t version() const { return version_; }  ///< of the weights last set, 0: none yet

 private:
  void record_routes();
  WeightedDrafter& draft_model();

  const ModelSpec spec_;
  const EngineConfig config_;
  WeightedDrafter* const draft_model_;  // the scheduler's; null: none
  Scheduler scheduler_;
  StepPlan plan_;
  std::shared_ptr<const ops::WeightSource> weights_;
  std::unique_ptr<StepRunner> runner_;
  int64_t version_ = 0;
  bool is_paused_ = false;
};

}  // namespace nibble
