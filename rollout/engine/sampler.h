#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/kernels/log_softmax.h"
#include "core/kernels/parallel.h"
#include "core/kernels/weight_view.h"
#include "core/models/step_ranks.h"
#include "rollout/engine/draw.h"

namespace nibble {

/// Language model head and sampling over a bounded buffer of logits. Of several ranks each
/// multiplies with its part of the head, and the first draws. One thread.
class Sampler {
 public:
  struct Shape {
    int64_t hidden = 0;
    int64_t vocab = 0;
    int64_t max_rows = 0;  ///< of logits at a time
  };
  Sampler(Shape shape, const kernels::Parallel& parallel, StepRanks ranks = {});

  /// Fills in the results of `draws`. Logits exist only for rows that are drawn from, and once.
  ///   hidden  float32 [rows, hidden]
  ///   head    [vocab, hidden]
  ///   draws   in rising order of row; on ranks but the first only rows matter
  void draw(const float* hidden, const kernels::WeightView& head, std::span<Draw> draws);

 private:
  size_t gather(const float* hidden, std::span<const Draw> draws);
  void compute_logits(const kernels::WeightView& head);
  void draw_from_logits(std::span<Draw> draws);

  const Shape shape_;
  const kernels::Parallel& parallel_;
  const StepRanks ranks_;
  std::vector<float> hidden_;       // [max_rows, hidden]
  std::vector<float> logits_;       // [max_rows, vocab]
  std::vector<float> part_;         // of them, this rank's; with others only
  std::vector<float> parts_;        // of them, every rank's
  std::vector<int64_t> logit_row_;  // of each draw of the chunk
  int64_t num_rows_ = 0;            // of the chunk
};

}  // namespace nibble
