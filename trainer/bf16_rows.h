#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/quant/bf16.h"
#include "core/spec/mesh.h"

namespace nibble {

/// Rows of a matrix of BF16 bits, [rows, cols], in float32: what masters start from.
inline std::vector<float> widened_rows(std::span<const uint16_t> bf16, const RowShard& rows,
                                       int64_t cols) {
  std::vector<float> wide(static_cast<size_t>(rows.rows() * cols));
  for (size_t i = 0; i < wide.size(); ++i) {
    wide[i] = quant::bf16_to_float(bf16[static_cast<size_t>(rows.begin * cols) + i]);
  }
  return wide;
}

}  // namespace nibble
