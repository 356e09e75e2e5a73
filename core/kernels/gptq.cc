#include "core/kernels/gptq.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace nibble::kernels {
namespace {

constexpr int64_t kRowGrain = 16;

float weighted_error(const uint16_t* weight, const float* importance, int64_t count, float scale,
                     quant::Grid grid) {
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float error = square_error(quant::bf16_to_float(weight[i]), scale, grid);
    sum += importance == nullptr ? error : importance[i] * error;
  }
  return sum;
}

uint16_t scale_of(const ScaleJob& job, const uint16_t* weight, const float* importance) {
  const int64_t count = job.shape.group;
  float absmax = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    absmax = std::max(absmax, std::fabs(quant::bf16_to_float(weight[i])));
  }
  uint16_t best = quant::group_scale(absmax, job.grid);
  if (job.search == ScaleSearch::kNone || absmax == 0.0f) return best;
  float least = weighted_error(weight, importance, count, quant::bf16_to_float(best), job.grid);
  for (int i = 0; i < kScaleCandidates; ++i) {
    const uint16_t scale = quant::group_scale(absmax * scale_factor(i), job.grid);
    const float error =
        weighted_error(weight, importance, count, quant::bf16_to_float(scale), job.grid);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

void run_row(const GptqBlock& b, int64_t row) {
  std::array<float, kGptqBlock> w;
  std::copy_n(b.weight + row * b.weight_stride, b.cols, w.begin());
  for (int64_t j = 0; j < b.cols; ++j) {
    const int64_t column = b.column[j];
    const float scale = quant::bf16_to_float(b.scale[row * b.groups + column / b.group]);
    const float weight = w[static_cast<size_t>(j)];
    const int code = quant::quantize_code(weight, scale, b.grid);
    const float* factor = b.factor + j * b.factor_stride;
    const float error =
        (weight - quant::bf16_to_float(quant::dequantize_code(code, scale))) / factor[j];
    b.code[row * b.code_stride + column] = static_cast<int8_t>(code);
    b.error[row * b.cols + j] = error;
    for (int64_t k = j + 1; k < b.cols; ++k) w[static_cast<size_t>(k)] -= error * factor[k];
  }
}

}  // namespace

void group_scales(const ScaleJob& job, const Parallel& parallel) {
  const int64_t groups = job.shape.groups_per_row();
  parallel.run(job.shape.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * groups; i < end * groups; ++i) {
      const int64_t first = i % groups * job.shape.group;
      job.scale[i] = scale_of(job, job.weight + i * job.shape.group,
                              job.importance == nullptr ? nullptr : job.importance + first);
    }
  });
}

void gptq_block(const GptqBlock& block, const Parallel& parallel) {
  parallel.run(block.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) run_row(block, row);
  });
}

}  // namespace nibble::kernels
