#pragma once

#include <cstdint>

#include "core/base/host_device.h"
#include "core/kernels/parallel.h"
#include "core/quant/group_codec.h"
#include "core/quant/rows.h"

// GPTQ (Frantar et al. 2022, arXiv:2210.17323) where it is bound by columns in order: one block of
// them. What is left are matrix products and a Cholesky factorization (convert/gptq.h).

namespace nibble::kernels {

/// How the scales of a matrix follow from its weights.
enum class ScaleSearch : uint8_t {
  kNone,  ///< from the largest magnitude (quant::group_scale)
  kMse,   ///< of scales around that one, the one with the smallest weighted square error
};

/// A matrix whose scales are wanted. Its weights are finite.
struct ScaleJob {
  const uint16_t* weight = nullptr;  ///< BF16 bits [rows, cols]
  quant::GroupShape shape;
  quant::Grid grid = quant::Grid::kSym7;
  ScaleSearch search = ScaleSearch::kNone;
  const float* importance = nullptr;  ///< [cols]: weight of each column's square error; null: ones
  uint16_t* scale = nullptr;          ///< BF16 bits [rows, cols/group], overwritten
};

/// Candidate i of kMse is the largest magnitude's scale times this.
constexpr int kScaleCandidates = 41;
/// The candidates and the scale they must beat, filled up to whole vectors.
constexpr int kScaleLanes = 48;
static_assert(kScaleLanes > kScaleCandidates);
NIBBLE_HOST_DEVICE inline float scale_factor(int candidate) {
  return 1.05f - 0.0125f * static_cast<float>(candidate);
}

/// Square error of one weight under a scale.
NIBBLE_HOST_DEVICE inline float square_error(float weight, float scale, quant::Grid grid) {
  const int code = quant::quantize_code(weight, scale, grid);
  const float error = weight - quant::bf16_to_float(quant::dequantize_code(code, scale));
  return error * error;
}

constexpr int kGptqBlock = 128;

/// A block of at most kGptqBlock columns of a matrix, all rows. Columns may have been permuted; a
/// column keeps the group, and so the scale, of its place in the original matrix.
struct GptqBlock {
  const float* weight = nullptr;  ///< [rows, cols] of the block, `weight_stride` apart
  int64_t weight_stride = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  const float* factor = nullptr;  ///< [cols, cols] of the upper factor, zero below its diagonal
  int64_t factor_stride = 0;
  const int64_t* column = nullptr;  ///< [cols]: place of each in the original matrix
  const uint16_t* scale = nullptr;  ///< BF16 bits [rows, groups]
  int64_t groups = 0;
  int64_t group = 0;  ///< columns of a group
  quant::Grid grid = quant::Grid::kSym7;
  int8_t* code = nullptr;  ///< [rows, code_stride], written at the original places
  int64_t code_stride = 0;
  float* error = nullptr;  ///< [rows, cols]: what later columns are corrected with, overwritten
};

/// On the CPU; WeightKernels has the device's.
void group_scales(const ScaleJob& job, const Parallel& parallel);
void gptq_block(const GptqBlock& block, const Parallel& parallel);

}  // namespace nibble::kernels
