#pragma once

#include <algorithm>
#include <cstdint>

namespace nibble::ops {

/// Rows of logits [rows, vocab] that a pass through the head has in memory at a time. Every chunk
/// reads and writes the gradient of the whole head, so that few large ones are better.
inline int64_t cpu_logit_rows(int64_t vocab) {
  constexpr int64_t kLogits = int64_t{16} << 20;  // 64 MiB of float32
  return std::max<int64_t>(16, kLogits / vocab);
}

/// The same on a GPU: whole tiles of a matrix product.
inline int64_t gpu_logit_rows(int64_t vocab) {
  constexpr int64_t kLogits = int64_t{160} << 20;  // 640 MiB of float32
  constexpr int64_t kTile = 256;
  return std::max<int64_t>(64, kLogits / vocab / kTile * kTile);
}

}  // namespace nibble::ops
