#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernels_cuda/device_weight.h"

// linear() and grouped_linear() for many tokens: the same bits, from matrices that were dequantized
// once (a panel), through tiles in shared memory. Faster from a few dozen tokens on.

namespace nibble::kernels::cuda {

/// Whether this GPU has the shared memory for the kernel (96 KiB).
bool has_panel_linear();
/// Tokens of a matrix from which on making its panel pays.
constexpr int64_t kFewestPanelTokens = 17;
/// Whether the kernel takes these shapes here, and pays: `tokens` of each matrix, on average.
bool suits_panel_linear(int64_t rows, int64_t cols, int64_t tokens);

/// y = x panel^T, summed as linear() sums.
///   x      device BF16 bits [tokens, cols], 16-byte aligned, like panel
///   panel  device BF16 bits [rows, cols]
///   y      device [tokens, rows], overwritten: BF16 bits or float32
void panel_linear(const uint16_t* x, const uint16_t* panel, int64_t rows, int64_t cols,
                  int64_t tokens, uint16_t* y, cudaStream_t stream);
void panel_linear(const uint16_t* x, const uint16_t* panel, int64_t rows, int64_t cols,
                  int64_t tokens, float* y, cudaStream_t stream);

/// The same of a BF16 matrix where it lies; a captured graph follows its device view.
void panel_linear(const uint16_t* x, const DeviceWeight& bf16, int64_t tokens, uint16_t* y,
                  cudaStream_t stream);

/// Rows [begin[e], begin[e + 1]) of x through matrix e.
///   panel  device BF16 bits [experts, rows, cols]
///   begin  device int32 [experts + 1]
///   pairs  rows of x
///   y      device BF16 bits [pairs, rows], overwritten
void grouped_panel_linear(const uint16_t* x, const uint16_t* panel, int64_t experts, int64_t rows,
                          int64_t cols, const int32_t* begin, int64_t pairs, uint16_t* y,
                          cudaStream_t stream);

}  // namespace nibble::kernels::cuda
