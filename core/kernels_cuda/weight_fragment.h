#pragma once

// How linear.cu and its relatives feed weights to m16n8k16 tensor core instructions: 16 weight rows
// are the instruction's A, 8 tokens its B. Included by .cu files only.
//
// A warp takes 128 input features at a time. Lane 4 g + t holds features [32 t, 32 t + 32) of rows
// g and g + 8 (one group's worth, or less), and the same features of token g. Which features meet
// in one instruction is free as long as A and B agree: of every lane's features 8 w .. 8 w + 7, one
// packed word or 16 bytes of BF16, instruction 2 w of a chunk takes the first four and instruction
// 2 w + 1 the others. So BF16 is used as it lies in memory.

#include "core/kernels/weight_view.h"
#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {

constexpr int kChunk = 128;          // input features of a warp's turn
constexpr int kChains = 8;           // partial sums of an output
constexpr int kLaneFeatures = 32;    // of a chunk
constexpr int kWords = kChunk / 32;  // of a lane's chunk: two instructions each

struct AFragment {
  uint32_t reg[4];
};
struct BFragment {
  uint32_t reg[2];
};

__device__ inline void multiply_add(float (&c)[4], const AFragment& a, const BFragment& b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]));
}

/// w' of nibbles j and j + 4 of a word, in the low and high half: (128 + u) - 136 is exact, and the
/// product rounds once, as quant::dequantize_code does.
__device__ inline uint32_t dequantize_pair(uint32_t word, int j, __nv_bfloat162 scale) {
  uint32_t bits;
  asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;\n" : "=r"(bits) : "r"(word >> (4 * j)));
  const __nv_bfloat162 biased = *reinterpret_cast<const __nv_bfloat162*>(&bits);
  const uint32_t offset_bits = 0x43084308u;
  const __nv_bfloat162 offset = *reinterpret_cast<const __nv_bfloat162*>(&offset_bits);
  const __nv_bfloat162 weight = __hmul2(__hsub2(biased, offset), scale);
  return *reinterpret_cast<const uint32_t*>(&weight);
}

/// w' of a word's nibbles, two a register, in order.
__device__ inline void dequantize_word(uint32_t word, __nv_bfloat162 scale, uint32_t (&out)[4]) {
  uint32_t apart[4];  // nibbles j and j + 4
  for (int j = 0; j < 4; ++j) apart[j] = dequantize_pair(word, j, scale);
  out[0] = __byte_perm(apart[0], apart[1], 0x5410);
  out[1] = __byte_perm(apart[2], apart[3], 0x5410);
  out[2] = __byte_perm(apart[0], apart[1], 0x7632);
  out[3] = __byte_perm(apart[2], apart[3], 0x7632);
}

__device__ inline __nv_bfloat162 both(uint16_t scale) {
  return __bfloat162bfloat162(__ushort_as_bfloat16(scale));
}

/// The weight rows of a lane: g and g + 8 of a tile.
struct LaneRows {
  int64_t low, high;
};

/// A tile's first row: the last tile moves back to end with the matrix.
__device__ inline int64_t tile_base(int64_t row, int64_t rows) {
  const int64_t last = rows > 16 ? rows - 16 : 0;
  return row < last ? row : last;
}
/// Rows past the end of a matrix of fewer than 16 repeat its last one.
__device__ inline LaneRows lane_rows(int64_t base, int g, int64_t rows) {
  const int64_t last = rows - 1;
  return {base + g < last ? base + g : last, base + g + 8 < last ? base + g + 8 : last};
}

/// A lane's packed weights of one chunk: 32 features of rows g and g + 8.
struct Int4Lane {
  uint4 low, high;
  uint16_t low_scale, high_scale;

  __device__ static Int4Lane zero() {
    return {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0), 0, 0};
  }
  /// `feature` is this lane's first one.
  __device__ static Int4Lane load(const WeightView& w, LaneRows rows, int64_t feature) {
    const int64_t low = rows.low * w.cols + feature, high = rows.high * w.cols + feature;
    return {__ldg(reinterpret_cast<const uint4*>(w.words() + low / 8)),
            __ldg(reinterpret_cast<const uint4*>(w.words() + high / 8)),
            __ldg(w.scale + low / w.group), __ldg(w.scale + high / w.group)};
  }
  /// The A of instructions 2 w and 2 w + 1.
  __device__ void pair(int w, AFragment (&a)[2]) const {
    const uint32_t lows[4] = {low.x, low.y, low.z, low.w};
    const uint32_t highs[4] = {high.x, high.y, high.z, high.w};
    uint32_t of_low[4], of_high[4];
    dequantize_word(lows[w], both(low_scale), of_low);
    dequantize_word(highs[w], both(high_scale), of_high);
    a[0] = {{of_low[0], of_high[0], of_low[1], of_high[1]}};
    a[1] = {{of_low[2], of_high[2], of_low[3], of_high[3]}};
  }
};

/// The same for BF16 weights.
struct Bf16Lane {
  uint4 low[4], high[4];

  __device__ static Bf16Lane zero() {
    Bf16Lane lane;
    for (int i = 0; i < 4; ++i) lane.low[i] = lane.high[i] = make_uint4(0, 0, 0, 0);
    return lane;
  }
  __device__ static Bf16Lane load(const WeightView& w, LaneRows rows, int64_t feature) {
    const auto* low = reinterpret_cast<const uint4*>(w.bf16() + rows.low * w.cols + feature);
    const auto* high = reinterpret_cast<const uint4*>(w.bf16() + rows.high * w.cols + feature);
    Bf16Lane lane;
    for (int i = 0; i < 4; ++i) {
      lane.low[i] = __ldg(low + i);
      lane.high[i] = __ldg(high + i);
    }
    return lane;
  }
  __device__ void pair(int w, AFragment (&a)[2]) const {
    a[0] = {{low[w].x, high[w].x, low[w].y, high[w].y}};
    a[1] = {{low[w].z, high[w].z, low[w].w, high[w].w}};
  }
};

/// The B of two instructions from eight features of a token.
__device__ inline void token_pair(const uint4& x, BFragment (&b)[2]) {
  b[0] = {{x.x, x.y}};
  b[1] = {{x.z, x.w}};
}

}  // namespace nibble::kernels::cuda
