#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

/// log-softmax of logits / temperature over the full vocabulary, one row at a time in one order:
/// what sampling, the rollout's log-probabilities and the trainer's all use.
struct RowStats {
  float max = 0.0f;      ///< of logits / temperature
  float log_sum = 0.0f;  ///< log sum exp(logits / temperature - max)
  float entropy = 0.0f;  ///< nats
  /// log p of a token with this logit.
  float log_prob(float logit, float temperature) const {
    return (logit / temperature - max) - log_sum;
  }
};

/// Statistics of every row.
///   logits  float32 [rows, vocab]
///   stats   [rows], overwritten
void log_softmax_stats(const float* logits, int64_t rows, int64_t vocab, float temperature,
                       RowStats* stats, const Parallel& parallel);

/// Gradients of a loss with respect to a row's log p(target) and its entropy H.
struct RowGrads {
  const float* log_prob = nullptr;  ///< float32 [rows]
  const float* entropy = nullptr;   ///< float32 [rows]; null: 0
};

/// Gradient of sum_r log_prob[r] * log p(target[r]) + entropy[r] * H[r] with respect to the logits,
/// in place: d log p(t) / dz_j = (1[j = t] - p_j) / T and dH / dz_j = -p_j (log p_j + H) / T.
///   logits  float32 [rows, vocab]; replaced by its gradient
///   target  int32 [rows]
void log_prob_backward(float* logits, const RowStats* stats, const int32_t* target,
                       const RowGrads& grads, int64_t rows, int64_t vocab, float temperature,
                       const Parallel& parallel);

/// How a token is drawn; the distribution's log-probabilities stay those before top-k and top-p.
struct SamplingParams {
  float temperature = 1.0f;  ///< 0: greedy, ties to the lower id
  int32_t top_k = 0;         ///< 0: all
  float top_p = 1.0f;        ///< 1: all
};

/// Draws a token from one row by inverting its cumulative distribution at `uniform` in [0, 1).
/// The same row and uniform give the same token wherever they are drawn.
int32_t sample_token(const float* logits, int64_t vocab, const SamplingParams& params,
                     double uniform);

}  // namespace nibble::kernels
