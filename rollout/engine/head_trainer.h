#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/kernels/rope.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/weight_source.h"
#include "rollout/engine/head_examples.h"

namespace nibble {

/// Trains a draft head on what its model drew: cross-entropy of the tokens that followed, AdamW on
/// float32 masters, on the CPU. The embedding and the output matrix are the model's and stay as
/// they are. Takes memory of four float32 values a parameter, and of one batch. One thread.
class HeadTrainer {
 public:
  struct Options {
    float lr = 1e-3f;
    float max_grad_norm = 1.0f;
    int64_t batch_inputs = 512;  ///< of one step
    uint64_t seed = 1;           ///< of the choice of examples
  };
  /// Starts from `weights` (own_head_weights()). `head` must outlive this and what weights() gave.
  HeadTrainer(const ModelSpec& head, const ModelSpec& model, const ResidentWeights& weights,
              Options options);
  ~HeadTrainer();
  HeadTrainer(const HeadTrainer&) = delete;
  HeadTrainer& operator=(const HeadTrainer&) = delete;

  /// One step on examples that are chosen at random; their mean cross-entropy before it, in nats.
  /// Nothing happens without examples. Throws Error{kFailedPrecondition} if that or the gradient is
  /// not finite; the weights are then as before.
  std::optional<double> step(const ops::WeightSource& of_model, const HeadExamples& examples);

  /// As they are now, in BF16: for Engine::set_draft_weights().
  std::unique_ptr<ResidentWeights> weights() const;
  int64_t num_steps() const { return num_steps_; }
  int64_t num_bytes() const;  ///< masters, moments, gradients, and the weights in BF16

 private:
  class Source;
  std::vector<const HeadExample*> choose(const HeadExamples& examples);
  double backward(const std::vector<const HeadExample*>& batch);
  void update();

  const ModelSpec& head_;
  const Options options_;
  std::unique_ptr<Source> source_;
  std::vector<std::vector<float>> master_, m_, v_;  // by parameter; empty where the model's
  std::shared_ptr<const kernels::RopeTable> rope_;  // shared: with passes
  uint64_t random_;
  int64_t num_steps_ = 0;
};

}  // namespace nibble
