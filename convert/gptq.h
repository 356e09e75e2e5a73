#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "core/kernels/gptq.h"
#include "core/ops/backend.h"

namespace nibble {

struct GptqOptions {
  quant::Grid grid = quant::Grid::kSym7;
  int64_t group_size = 32;
  kernels::ScaleSearch search = kernels::ScaleSearch::kNone;
  bool act_order = true;    ///< columns with large inputs first; files keep their order
  double dampening = 0.01;  ///< of the mean of the gram's diagonal, added to it
};

/// What had to be done so that a gram could be factored.
enum class Recovery : uint8_t {
  kNone,
  kDampening,       ///< more of it than was asked for
  kDiagonalFloor,   ///< no entry of the diagonal below its mean
  kRoundToNearest,  ///< nothing helped: the matrices are rounded to nearest
};
const char* recovery_name(Recovery recovery);

/// The sums that GPTQ corrects with, for all matrices with the same input.
struct GptqFactor {
  at::Tensor upper;  ///< float32 [C, C]: Cholesky factor of the inverse; undefined: kRoundToNearest
  at::Tensor order;  ///< int64 [C]: place of each of its columns in the matrix
  at::Tensor dead;   ///< int64: columns whose input is always zero
  at::Tensor added;  ///< float32 [C]: to the diagonal, by place in the matrix; 0 for dead columns
  double dampening = 0.0;  ///< that was used
  Recovery recovery = Recovery::kNone;
};

/// `gram`: float32 [C, C], x^T x summed over tokens, symmetric. Tries more and more dampening, then
/// a floor under the diagonal.
GptqFactor factor_gram(const at::Tensor& gram, const GptqOptions& options);

/// A matrix in codes, on the device it came from.
struct QuantizedMatrix {
  at::Tensor code;     ///< int8 [R, C]
  at::Tensor scale;    ///< BF16 [R, C / group]
  at::Tensor rounded;  ///< BF16 [R, C]: w' = bf16(code * scale)
};

/// Scales of a matrix from its weights, finite BF16 [R, C].
///   importance  float32 [C] or undefined: of each column, for kMse
at::Tensor matrix_scales(const at::Tensor& weight, const GptqOptions& options,
                         kernels::ScaleSearch search, const at::Tensor& importance,
                         const ops::Backend& backend);

/// Every weight to its nearest code under given scales.
QuantizedMatrix quantize_nearest(const at::Tensor& weight, const at::Tensor& scale,
                                 const GptqOptions& options);

struct GptqResult {
  QuantizedMatrix matrix;
  double output_error = 0.0;  ///< output_error() of what it is off; costs no product here
};

/// GPTQ with static groups: scales are of the original weights, also where columns are reordered.
/// Falls back to quantize_nearest() if the factor of `gram` says so.
GptqResult quantize_gptq(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& gram,
                         const GptqFactor& factor, const GptqOptions& options,
                         const ops::Backend& backend);

/// Sum over tokens and outputs of the squared difference that `delta` (float32 [R, C]) makes:
/// trace(delta gram delta^T).
double output_error(const at::Tensor& delta, const at::Tensor& gram);

}  // namespace nibble
