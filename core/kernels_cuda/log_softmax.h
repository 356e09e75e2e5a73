#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernels/log_softmax.h"

// All arrays are on the device. A row's results depend on the row only. Logits are multiplied by
// 1 / temperature, rounded, rather than divided: everywhere here alike.

namespace nibble::kernels::cuda {

/// Statistics of every row, as log_softmax_stats() of core/kernels.
///   logits  float32 [rows, vocab]
///   stats   [rows], overwritten
void log_softmax_stats(const float* logits, int64_t rows, int64_t vocab, float temperature,
                       RowStats* stats, cudaStream_t stream);

/// log p and entropy of each row's target.
///   target    int32 [rows]
///   log_prob  float32 [rows], overwritten
///   entropy   float32 [rows], overwritten
void target_log_probs(const float* logits, const RowStats* stats, const int32_t* target,
                      int64_t rows, int64_t vocab, float temperature, float* log_prob,
                      float* entropy, cudaStream_t stream);

/// dlogits = the gradient of log_prob_backward() of core/kernels, as BF16 bits [rows, vocab].
/// Arrays of `grads` are on the device.
void log_prob_backward(const float* logits, const RowStats* stats, const int32_t* target,
                       const RowGrads& grads, int64_t rows, int64_t vocab, float temperature,
                       uint16_t* dlogits, cudaStream_t stream);

/// One token to draw; the device's form of an engine's draw.
struct DrawSpec {
  int32_t row = 0;
  float temperature = 1.0f;  ///< 0: greedy, ties to the lower id
  int32_t top_k = 0;         ///< 0: all
  float top_p = 1.0f;        ///< 1: all
  double uniform = 0.0;      ///< in [0, 1)
  int32_t given = -1;        ///< a token that is given instead of drawn; -1: drawn
};
struct DrawResult {
  int32_t token = -1;
  float log_prob = 0.0f;  ///< over the full vocabulary at the temperature (1 when greedy)
};

/// Draws by inverting the cumulative distribution of the tokens that top-k, then top-p leave.
///   logits   float32 [rows, vocab]
///   draws    [count]
///   results  [count], overwritten
void sample(const float* logits, int64_t vocab, const DrawSpec* draws, int64_t count,
            DrawResult* results, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
