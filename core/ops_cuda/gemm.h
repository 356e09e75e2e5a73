#pragma once

#include <ATen/core/Tensor.h>

#include "core/kernels/weight_view.h"

namespace nibble::ops {

/// w' as a BF16 CUDA matrix [rows, cols]: BF16 weights as they lie, INT4 dequantized into a panel
/// of its own.
at::Tensor weight_matrix(const kernels::WeightView& w);

/// The matrices w' of `count` views of one shape, three apart, as one BF16 panel [count, rows,
/// cols].
at::Tensor weight_panel(const kernels::WeightView* first, int64_t count);

/// grad += dy^T x in float32 (cuBLAS).
///   dy    BF16 CUDA [tokens, rows]
///   x     BF16 CUDA [tokens, cols]
///   grad  device float32 [rows, cols]
void add_weight_gradient(const at::Tensor& dy, const at::Tensor& x, float* grad);

}  // namespace nibble::ops
