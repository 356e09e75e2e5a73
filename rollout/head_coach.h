#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "core/ops/weight_source.h"
#include "rollout/draft_head.h"
#include "rollout/engine/engine.h"
#include "rollout/engine/head_examples.h"
#include "rollout/engine/head_trainer.h"

namespace nibble {

/// Trains a draft head while its engine, on the CPU, draws: one step of bounded size at a time,
/// between two of the engine's. Changes no sample. One thread, the engine's. Must outlive the
/// engine.
class HeadCoach {
 public:
  struct Options {
    HeadTrainer::Options training;
    int64_t every_inputs = 128;   ///< drawn tokens for each step of training
    int64_t max_inputs = 8192;    ///< tokens to learn from that are kept, each with its state
    int64_t example_inputs = 64;  ///< of one sample in a row
  };
  HeadCoach(std::shared_ptr<const DraftHead> head, const ModelSpec& model, Options options);

  /// Where the engine's drafter puts what it sees (HeadDrafter::Options).
  HeadExamples& examples() { return examples_; }
  /// After a step of the engine: if enough was drawn, one step of training, and the engine guesses
  /// with what came of it. Throws as HeadTrainer::step().
  void after_step(Engine& engine, const ops::WeightSource& of_model);
  /// Writes the head as it is now (save_draft_head()).
  void save(const std::filesystem::path& directory) const;

  int64_t num_steps() const { return trainer_.num_steps(); }
  double loss() const { return loss_; }  ///< of the last step, in nats a token
  int64_t num_bytes() const { return trainer_.num_bytes() + examples_.num_bytes(); }

 private:
  const std::shared_ptr<const DraftHead> head_;  // shared: with who made the engine's drafter of it
  const Options options_;
  HeadExamples examples_;
  HeadTrainer trainer_;
  int64_t num_used_ = 0;  // of examples_.num_added(), that steps were done for
  int64_t version_ = 1;   // that the engine has
  double loss_ = 0.0;
};

}  // namespace nibble
