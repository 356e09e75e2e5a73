#include "core/kernels/gptq.h"

#include "core/kernels_cuda/launch.h"
#include "core/kernels_cuda/weight_scratch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;
constexpr int kPerLane = kGptqBlock / kWarp;

// A warp a group. Bound by arithmetic where scales are searched: a division a weight and candidate.
__global__ void scales_kernel(ScaleJob job, int64_t num_groups) {
  const int64_t groups = job.shape.groups_per_row();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t step = int64_t{gridDim.x} * kRowsPerBlock;
  for (int64_t i = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp; i < num_groups;
       i += step) {
    const uint16_t* weight = job.weight + i * job.shape.group;
    const float* importance =
        job.importance == nullptr ? nullptr : job.importance + i % groups * job.shape.group;
    float absmax = 0.0f;
    for (int64_t k = lane; k < job.shape.group; k += kWarp) {
      absmax = fmaxf(absmax, fabsf(to_float(weight[k])));
    }
    absmax = warp_max(absmax);
    const auto error_of = [&](uint16_t bits) {
      float sum = 0.0f;
      for (int64_t k = lane; k < job.shape.group; k += kWarp) {
        const float error = square_error(to_float(weight[k]), to_float(bits), job.grid);
        sum += importance == nullptr ? error : importance[k] * error;
      }
      return warp_sum(sum);
    };
    uint16_t best = quant::group_scale(absmax, job.grid);
    if (job.search == ScaleSearch::kMse && absmax > 0.0f) {
      float least = error_of(best);
      for (int c = 0; c < kScaleCandidates; ++c) {
        const uint16_t scale = quant::group_scale(absmax * scale_factor(c), job.grid);
        const float error = error_of(scale);
        if (error < least) {
          least = error;
          best = scale;
        }
      }
    }
    if (lane == 0) job.scale[i] = best;
  }
}

// A warp a row, four columns of the block a lane; the factor's block is in shared memory (64 KiB),
// zero where it ends. 128 dependent steps a row: rows hide each other's latency.
__global__ void gptq_kernel(GptqBlock b) {
  extern __shared__ float factor[];  // [kGptqBlock, kGptqBlock]
  for (int i = static_cast<int>(threadIdx.x); i < kGptqBlock * kGptqBlock; i += kThreads) {
    const int row = i / kGptqBlock, col = i % kGptqBlock;
    factor[i] = row < b.cols && col < b.cols ? b.factor[row * b.factor_stride + col] : 0.0f;
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t step = int64_t{gridDim.x} * kRowsPerBlock;
  for (int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp; row < b.rows;
       row += step) {
    float w[kPerLane];  // columns lane, lane + 32, ...
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int j = i * kWarp + lane;
      w[i] = j < b.cols ? b.weight[row * b.weight_stride + j] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int mine = i * kWarp + lane;
      const int64_t column = mine < b.cols ? b.column[mine] : 0;
      const float scale =
          mine < b.cols ? to_float(b.scale[row * b.groups + column / b.group]) : 1.0f;
      int code = 0;
      float own_error = 0.0f;
      const int end = static_cast<int>(b.cols) - i * kWarp;
      for (int l = 0; l < kWarp && l < end; ++l) {
        const float* u = factor + (i * kWarp + l) * kGptqBlock;
        float error = 0.0f;
        if (lane == l) {
          code = quant::quantize_code(w[i], scale, b.grid);
          error = (w[i] - to_float(quant::dequantize_code(code, scale))) / u[mine];
          own_error = error;
        }
        error = __shfl_sync(kAllLanes, error, l);
#pragma unroll
        for (int k = i; k < kPerLane; ++k) w[k] -= error * u[k * kWarp + lane];
      }
      if (mine < b.cols) {
        b.code[row * b.code_stride + column] = static_cast<int8_t>(code);
        b.error[row * b.cols + mine] = own_error;
      }
    }
  }
}

}  // namespace

void CudaWeightKernels::group_scales(const ScaleJob& job) const {
  const int64_t num_groups = job.shape.rows * job.shape.groups_per_row();
  if (num_groups == 0) return;
  Scratch& s = *scratch_;
  s.bind();
  const std::lock_guard lock(s.mutex);
  scales_kernel<<<grid_size(num_groups, kRowsPerBlock), kThreads, 0, s.stream>>>(job, num_groups);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void CudaWeightKernels::gptq_block(const GptqBlock& block) const {
  if (block.rows == 0) return;
  Scratch& s = *scratch_;
  s.bind();
  const std::lock_guard lock(s.mutex);
  constexpr int kShared = kGptqBlock * kGptqBlock * static_cast<int>(sizeof(float));
  NIBBLE_CUDA_CHECK(
      cudaFuncSetAttribute(gptq_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  gptq_kernel<<<grid_size(block.rows, kRowsPerBlock, 1 << 12), kThreads, kShared, s.stream>>>(
      block);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
