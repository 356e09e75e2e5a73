#pragma once

#include <cstdint>
#include <optional>

#include "core/kernels/parallel.h"
#include "core/quant/held_scale.h"
#include "core/quant/rows.h"

namespace nibble::kernels {

/// A matrix to pack under scales that are held (quant::hold, quant::quantize_held).
struct HeldMatrix {
  const float* master = nullptr;  ///< float32 [rows, cols]
  quant::GroupShape shape;
  const uint16_t* scale = nullptr;  ///< BF16 bits [rows, cols/group], valid ones
  uint32_t* words = nullptr;        ///< uint32 [rows, cols/8], overwritten
  float* projected = nullptr;       ///< null, or `master`: projected values are written there
};

/// What packing it met.
struct HeldPacking {
  std::optional<quant::QuantizeProblem> problem;  ///< the first NaN in row-major order
  int64_t projected = 0;                          ///< masters whose cast had left their range
};

/// Rounds masters to BF16, projects them into [-8.5 s, 7.5 s] and packs their codes, in one pass.
HeldPacking pack_held_int4(const HeldMatrix& matrix, const Parallel& parallel);

/// Consecutive groups of such a matrix, as the kernel of an instruction set takes them.
struct HeldGroups {
  const float* master;
  const quant::HeldRange* range;  ///< one a group
  int64_t group;
  int64_t count;  ///< groups
  uint32_t* words;
  float* projected;
};
struct HeldGroupsResult {
  int64_t first_bad;  ///< group that holds a NaN, or -1
  int64_t projected;
};

}  // namespace nibble::kernels
