#include "core/cuda/check.h"
#include "core/kernels_cuda/quantize.h"
#include "core/quant/group_codec.h"
#include "core/quant/pack.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // one packed word

// grid-stride over groups; kLanes = group / 8 threads hold a group, eight weights each: one 16-byte
// pair of loads, one word out. Reads master once; bound by HBM bandwidth.
template <int kGroup>
__global__ void quantize_pack_kernel(const float* __restrict__ master, int64_t num_groups,
                                     uint32_t* __restrict__ words, uint16_t* __restrict__ scale,
                                     unsigned long long* first_bad) {
  constexpr int kLanes = kGroup / kPerThread;
  const int lane = threadIdx.x % kLanes;
  const int64_t stride = int64_t{gridDim.x} * (kThreads / kLanes);
  const int64_t first = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  // Every thread of a warp runs the same number of rounds, because shuffles need them all.
  const int64_t rounds = (num_groups + stride - 1) / stride;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t group = first + round * stride;
    const bool active = group < num_groups;
    const int64_t at = (active ? group : 0) * kGroup + lane * kPerThread;
    float w[kPerThread];
    float absmax = 0.0f;
    bool finite = true;
    for (int i = 0; i < kPerThread; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(master + at + i);
      w[i] = four.x;
      w[i + 1] = four.y;
      w[i + 2] = four.z;
      w[i + 3] = four.w;
    }
    for (int i = 0; i < kPerThread; ++i) {
      const uint16_t bits = quant::float_to_bf16(w[i]);
      finite = finite && quant::bf16_is_finite(bits);
      w[i] = quant::bf16_to_float(bits);
      absmax = fmaxf(absmax, fabsf(w[i]));
    }
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      absmax = fmaxf(absmax, __shfl_xor_sync(0xffffffffu, absmax, offset));
      finite = __shfl_xor_sync(0xffffffffu, static_cast<int>(finite), offset) != 0 && finite;
    }
    const uint16_t scale_bits = quant::group_scale(absmax, quant::Grid::kSym7);
    const float s = quant::bf16_to_float(scale_bits);
    uint32_t word = 0;
    bool overflow = false;
    for (int i = 0; i < kPerThread; ++i) {
      const int q = quant::quantize_code(w[i], s, quant::Grid::kSym7);
      overflow = overflow || !quant::bf16_is_finite(quant::dequantize_code(q, s));
      word |= quant::int4_bits(q, i);
    }
    if (!active) continue;
    words[at / kPerThread] = word;
    if (lane == 0) scale[group] = scale_bits;
    if (!finite || overflow) {
      atomicMin(first_bad, static_cast<unsigned long long>(group) * 2 + (finite ? 1 : 0));
    }
  }
}

__global__ void dequantize_kernel(const uint32_t* __restrict__ words,
                                  const uint16_t* __restrict__ scale, int64_t num_words,
                                  int words_per_group, uint16_t* __restrict__ weight) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < num_words;
       i += int64_t{gridDim.x} * kThreads) {
    const float s = quant::bf16_to_float(scale[i / words_per_group]);
    const uint32_t word = words[i];
    uint4 out;
    uint32_t* pair = reinterpret_cast<uint32_t*>(&out);
    for (int k = 0; k < 4; ++k) {
      const uint32_t low = quant::dequantize_code(quant::int4_at(word, 2 * k), s);
      const uint32_t high = quant::dequantize_code(quant::int4_at(word, 2 * k + 1), s);
      pair[k] = low | high << 16;
    }
    *reinterpret_cast<uint4*>(weight + i * 8) = out;
  }
}

unsigned grid_size(int64_t items, int per_block) {
  constexpr int64_t kMaxBlocks = 1 << 16;
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <int kGroup>
void launch_quantize(const float* master, int64_t num_groups, uint32_t* words, uint16_t* scale,
                     unsigned long long* first_bad, cudaStream_t stream) {
  const unsigned blocks = grid_size(num_groups, kThreads / (kGroup / kPerThread));
  quantize_pack_kernel<kGroup>
      <<<blocks, kThreads, 0, stream>>>(master, num_groups, words, scale, first_bad);
}

}  // namespace

void quantize_pack_int4(const float* master, const quant::GroupShape& shape, uint32_t* words,
                        uint16_t* scale, unsigned long long* first_bad, cudaStream_t stream) {
  const int64_t num_groups = shape.rows * shape.groups_per_row();
  if (num_groups == 0) return;
  if (shape.group == 32) {
    launch_quantize<32>(master, num_groups, words, scale, first_bad, stream);
  } else if (shape.group == 64) {
    launch_quantize<64>(master, num_groups, words, scale, first_bad, stream);
  } else {
    launch_quantize<128>(master, num_groups, words, scale, first_bad, stream);
  }
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void dequantize_int4(const uint32_t* words, const uint16_t* scale, const quant::GroupShape& shape,
                     uint16_t* weight, cudaStream_t stream) {
  const int64_t num_words = shape.rows * shape.cols / 8;
  if (num_words == 0) return;
  dequantize_kernel<<<grid_size(num_words, kThreads), kThreads, 0, stream>>>(
      words, scale, num_words, static_cast<int>(shape.group / 8), weight);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
