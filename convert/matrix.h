#pragma once

#include <cstdint>
#include <span>

#include "core/kernels/gptq.h"
#include "core/kernels/parallel.h"
#include "core/models/weights.h"
#include "core/quant/group_codec.h"
#include "core/spec/quantization.h"

namespace nibble {

/// Rounds one BF16 matrix to the plan's bits and group size on `grid` (sym127 is the one of 8 bits,
/// the others are of 4). Throws Error{kInvalidArgument} naming tensor, row and group of
/// a weight that cannot be quantized.
StoredParameter round_matrix(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                             const QuantizationPlan& plan, quant::Grid grid,
                             kernels::ScaleSearch search, const kernels::Parallel& parallel);

/// Throws as round_matrix() would.
void check_quantizable(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                       int64_t group_size, quant::Grid grid, const kernels::Parallel& parallel);

/// |w - w'| / |w| over the whole matrix (root mean squares); 0 for a matrix of zeros. The same
/// value for any number of threads.
double relative_rms_error(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                          const QuantizationPlan& plan, const StoredParameter& packed,
                          const kernels::Parallel& parallel);

}  // namespace nibble
