#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/models/decoder.h"
#include "core/ops/weight_source.h"
#include "rollout/engine/draft_asker.h"
#include "rollout/engine/draft_budget.h"
#include "rollout/engine/draft_samples.h"
#include "rollout/engine/step_runner.h"
#include "rollout/engine/weighted_drafter.h"

namespace nibble {

/// Guesses of a small model with the vocabulary of the large one. All samples of a round go through
/// its steps together; the first step of a round also computes what the model has not seen:
/// prompts, and tokens that were not drawn as guessed.
///
/// A guess is drawn from the model's distribution with the random number and the sampling
/// parameters that the engine will draw the token with. So the guess is right wherever both
/// distributions put the same token at that number: always, if the model is the large one itself.
///
/// Has a KV cache of its own (DraftSamples). Guesses nothing until set_weights(). One thread.
class ModelDrafter final : public WeightedDrafter {
 public:
  struct Options {
    /// Where a step that draws from every token is a captured one (on a GPU): steps with few tokens
    /// to catch up with draw from these too, in vain.
    bool draws_in_every_row = false;
  };
  /// Allocates everything but the weights. Throws Error{kInvalidArgument} naming the field of
  /// `config` that is out of range.
  ///   config  sizes of the model's steps and cache (draft_config)
  ModelDrafter(const ModelSpec& spec, const EngineConfig& config,
               const StepRunnerFactory& make_runner, Options options);
  ModelDrafter(const ModelSpec& spec, const EngineConfig& config,
               const StepRunnerFactory& make_runner)
      : ModelDrafter(spec, config, make_runner, Options()) {}

  /// What is in the cache stays.
  void set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) override;
  void release_weights() override;
  /// It guesses without them.
  void set_model_weights(std::shared_ptr<const ops::WeightSource> /*weights*/) override {}
  const ModelSpec& spec() const override { return spec_; }
  const DraftSamples& samples() const { return samples_; }

  void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
             std::span<const int32_t> drawn) override {
    samples_.begin(request, prompt, drawn);
  }
  void extend(uint64_t id, int32_t token) override { samples_.extend(id, token); }
  void end(uint64_t id, bool is_whole) override { samples_.end(id, is_whole); }
  /// Throws Error{kFailedPrecondition} if the weights give a probability that is not finite.
  void propose(const DraftRound& round, DraftPolicy& policy) override;
  int64_t num_bytes() const override;

 private:
  struct Asker : DraftAsker {
    DraftedSample* sample = nullptr;
    int64_t num_behind() const { return sample->num_behind(); }
  };
  // Consecutive tokens of a step: of a prompt, or of a sample (whose prompt is there).
  struct Part {
    Group* group = nullptr;
    DraftedSample* sample = nullptr;  // null: of the prompt
    int64_t num_tokens = 0;
  };
  void find_askers(const DraftRound& round);
  void place_askers(int64_t room);
  bool place(Asker& asker);
  void plan_step();
  bool add_prompt(const Asker& asker);
  void add_response(Asker& asker);
  void add_row(const Sequence& lane_of, int64_t position, int32_t token);
  void draw_in_every_row();
  int64_t room() const { return config_.max_step_tokens - plan_.num_tokens(); }
  int64_t run_step(DraftPolicy& policy);

  const ModelSpec spec_;
  const EngineConfig config_;
  const Options options_;
  DraftSamples samples_;
  std::unique_ptr<StepRunner> runner_;
  std::shared_ptr<const ops::WeightSource> weights_;  // shared: as an engine's
  int64_t version_ = 0;

  // Of a round.
  std::vector<Asker> askers_;
  std::vector<DraftedSample*> asking_;
  // Of a step.
  StepPlan plan_;
  std::vector<Part> parts_;
  std::vector<Asker*> drawers_;  // whose guess each draw is; null: nobody's
};

/// Sizes of a draft model beside an engine of `config`: as many samples and tokens, positions as
/// far as it takes them.
EngineConfig draft_config(EngineConfig config, const ModelSpec& draft);

}  // namespace nibble
