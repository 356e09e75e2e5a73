#pragma once

// How linear.cu and its relatives feed weights to m16n8k16 tensor core instructions: 16 weight rows
// are the instruction's A, 8 tokens its B. Included by .cu files only.
//
// A warp takes 128 input features at a time. Lane 4 g + t holds features [32 t, 32 t + 32) of rows
// g and g + 8 (one group's worth, or less), and the same features of token g. Which features meet
// in one instruction is free as long as A and B agree, so packed words are used as they lie in
// files: instruction 2 w + h of a chunk takes nibbles {2 h, 2 h + 4} and {2 h + 1, 2 h + 5} of word
// w.

#include "core/kernels/weight_view.h"
#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {

constexpr int kChunk = 128;          // input features of a warp's turn
constexpr int kChains = 8;           // partial sums of an output
constexpr int kLaneFeatures = 32;    // of a chunk
constexpr int kSteps = kChunk / 16;  // instructions of a chunk

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
  __device__ AFragment step(int i) const {
    const uint32_t lows[4] = {low.x, low.y, low.z, low.w};
    const uint32_t highs[4] = {high.x, high.y, high.z, high.w};
    const int j = 2 * (i % 2);
    const __nv_bfloat162 s = both(low_scale), t = both(high_scale);
    return {{dequantize_pair(lows[i / 2], j, s), dequantize_pair(highs[i / 2], j, t),
             dequantize_pair(lows[i / 2], j + 1, s), dequantize_pair(highs[i / 2], j + 1, t)}};
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
  __device__ AFragment step(int i) const;
};

/// Eight features of a token -> the B of two instructions, in the words' order.
__device__ inline void pair_features(const uint4& x, BFragment& first, BFragment& second) {
  first.reg[0] = __byte_perm(x.x, x.z, 0x5410);
  first.reg[1] = __byte_perm(x.x, x.z, 0x7632);
  second.reg[0] = __byte_perm(x.y, x.w, 0x5410);
  second.reg[1] = __byte_perm(x.y, x.w, 0x7632);
}

__device__ inline AFragment Bf16Lane::step(int i) const {
  BFragment l[2], h[2];
  pair_features(low[i / 2], l[0], l[1]);
  pair_features(high[i / 2], h[0], h[1]);
  const int half = i % 2;
  return {{l[half].reg[0], h[half].reg[0], l[half].reg[1], h[half].reg[1]}};
}

}  // namespace nibble::kernels::cuda
