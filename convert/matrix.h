#pragma once

#include <cstdint>
#include <span>

#include "core/kernels/gptq.h"
#include "core/kernels/parallel.h"
#include "core/models/weights.h"
#include "core/quant/group_codec.h"
#include "core/spec/quantization.h"

namespace nibble {

/// A matrix in codes, and |w - w'| / |w| over all of it (root mean squares; 0 for zeros).
struct RoundedMatrix {
  StoredParameter packed;
  double relative_rms_error = 0.0;
};

/// Rounds one BF16 matrix to the plan's bits and group size on `grid` (sym127 is the one of 8 bits,
/// the others are of 4), in one pass; the same for any number of threads. Throws
/// Error{kInvalidArgument} naming tensor, row and group of a weight that cannot be quantized.
RoundedMatrix round_matrix(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                           const QuantizationPlan& plan, quant::Grid grid,
                           kernels::ScaleSearch search, const kernels::Parallel& parallel);

/// Throws as round_matrix() would.
void check_quantizable(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                       int64_t group_size, quant::Grid grid, const kernels::Parallel& parallel);

}  // namespace nibble
