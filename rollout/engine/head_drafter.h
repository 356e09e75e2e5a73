#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/models/decoder.h"
#include "core/ops/weight_source.h"
#include "rollout/engine/draft_asker.h"
#include "rollout/engine/head_examples.h"
#include "rollout/engine/head_samples.h"
#include "rollout/engine/head_weights.h"
#include "rollout/engine/step_runner.h"
#include "rollout/engine/weighted_drafter.h"

namespace nibble {

/// Guesses of a head on the engine's model (MTP, EAGLE): one layer that is given, at each position,
/// the token there and the model's final hidden state (after its final norm) of the position
/// before, and guesses the token after. A further guess is made of the guessed token and of the
/// head's own final hidden state. Embedding and output matrix are those that the engine serves.
///
/// All samples of a round go through its steps together. A guess is drawn with the random number
/// and the sampling parameters that the engine will draw the token with (ModelDrafter). A sample
/// is looked back on for a window of positions; one whose states are not there gets no guesses.
///
/// Guesses nothing until set_weights() and set_model_weights(). One thread.
class HeadDrafter final : public WeightedDrafter {
 public:
  struct Options {
    int64_t window = 64;               ///< positions that a guess looks back on
    HeadExamples* examples = nullptr;  ///< what it can be trained with goes there; null: nowhere
  };
  /// Allocates everything but the weights. `options.examples` must outlive this. Throws
  /// Error{kInvalidArgument} naming the field that is out of range.
  ///   head    has a join (ModelConfig::joins_hidden), and width and vocabulary of `model`
  ///   config  the engine's: of its steps, samples, positions and guesses
  HeadDrafter(const ModelSpec& head, const ModelSpec& model, const EngineConfig& config,
              const StepRunnerFactory& make_runner, Options options);

  /// Those of parameters that are the model's are not looked at (HeadWeights).
  void set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) override;
  void release_weights() override;
  void set_model_weights(std::shared_ptr<const ops::WeightSource> weights) override;
  const ModelSpec& spec() const override { return spec_; }
  const HeadSamples& samples() const { return samples_; }

  void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
             std::span<const int32_t> drawn) override {
    samples_.begin(request, prompt, drawn);
  }
  void extend(uint64_t id, int32_t token) override { samples_.extend(id, token); }
  void end(uint64_t id, bool is_whole) override;
  /// Throws Error{kFailedPrecondition} if the weights give a probability that is not finite.
  void propose(const DraftRound& round, DraftPolicy& policy) override;
  void ask(StepPlan& plan) override;
  void observe(const StepPlan& plan) override { samples_.observe(plan, options_.examples); }
  int64_t num_bytes() const override { return samples_.num_bytes(); }

 private:
  // A query on its way.
  struct Asker : DraftAsker {
    HeadSample* sample = nullptr;
    std::vector<float> state;  // the head's own, of its last position
    int64_t num_behind() const { return sample->num_behind(); }
  };
  // Inputs of a sample in a step.
  struct Part {
    HeadSample* sample = nullptr;
    int64_t num_tokens = 0;
  };
  void serve_weights();
  void find_askers(const DraftRound& round);
  void place_askers(int64_t room);
  void plan_inputs();
  void plan_guesses();
  void add_row(const HeadSample& sample, int64_t position, int32_t token, const float* state);
  void add_draw(Asker& asker);
  int64_t run_step(DraftPolicy& policy);

  const ModelSpec spec_;
  const ModelSpec model_;
  const EngineConfig config_;  // the engine's
  const Options options_;
  HeadSamples samples_;
  const EngineConfig runner_config_;
  std::unique_ptr<StepRunner> runner_;
  std::shared_ptr<const ops::WeightSource> own_;       // shared: as an engine's
  std::shared_ptr<const ops::WeightSource> of_model_;  // shared: as an engine's
  std::unique_ptr<HeadWeights> weights_;               // of both; null: one is missing
  int64_t version_ = 0;
  int64_t num_served_ = 0;

  // Of a round.
  std::vector<Asker> askers_;
  // Of a step.
  StepPlan plan_;
  std::vector<Part> parts_;
  std::vector<Asker*> drawers_;  // whose guess each draw is
};

/// Sizes of what computes a head's steps beside an engine of `config`.
EngineConfig head_runner_config(const EngineConfig& config, int64_t window);

}  // namespace nibble
