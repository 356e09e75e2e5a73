#pragma once

#include <cstdint>
#include <span>

#include "core/kernels/parallel.h"
#include "core/kernels/weight_view.h"

namespace nibble::kernels {

/// y = x w'^T, in the one summation order of Nibble's CPU path: each output is 16 partial sums,
/// lane i taking k = i mod 16 by FMA in rising k, then the tree i+8, i+4, i+2, i+1. The same bits
/// for every ISA, M, tiling and thread count (docs/decisions/0002-summation-order.md).
///   x   float32 [m, w.cols], row-major
///   y   float32 [m, w.rows] with row stride `ldy` >= w.rows, overwritten
void linear(const float* x, const WeightView& w, int64_t m, float* y, int64_t ldy,
            const Parallel& parallel);

/// One of several products that are computed together.
struct Product {
  const float* x = nullptr;  ///< [m, w.cols]; with x_row: the rows that it names
  WeightView w;
  int64_t m = 0;
  float* y = nullptr;  ///< [m, w.rows] with row stride ldy
  int64_t ldy = 0;
  const int32_t* x_row = nullptr;  ///< [m]: which rows of x; null: the first m
};

/// Each product as linear() computes it, to the bit. Threads share the work of all: worth it for
/// matrices of one input, and for experts, whose products are small.
void linear_many(std::span<const Product> products, const Parallel& parallel);

/// weight = w' as float32 [w.rows, w.cols], for backward passes through a library GEMM. Exact.
void dequantize(const WeightView& w, float* weight, const Parallel& parallel);

}  // namespace nibble::kernels
