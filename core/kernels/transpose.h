#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

/// to[c, r] = from[r, c]: BF16 bits [rows, cols] -> [cols, rows], both dense.
void transpose_bf16(const uint16_t* from, int64_t rows, int64_t cols, uint16_t* to,
                    const Parallel& parallel);

}  // namespace nibble::kernels
