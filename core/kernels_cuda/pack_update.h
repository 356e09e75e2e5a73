#pragma once

// Device code that packs weights, as they are or as AdamW leaves them, and how lists of tensors are
// cut into blocks' work. Included by .cu files only.

#include <span>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "core/kernels_cuda/launch.h"
#include "core/quant/group_codec.h"
#include "core/quant/held_scale.h"
#include "core/quant/pack.h"

namespace nibble::kernels::cuda {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;                  // one packed word
constexpr int64_t kChunkElements = 16 * 1024;  // of one tensor, a block's work
constexpr int kProblemBits = 42;               // of a position and its kind; the job is above

/// A block's part of a job.
struct Chunk {
  int64_t begin;
  int32_t job;
  int32_t count;
};

inline std::vector<Chunk> cut(std::span<const int64_t> counts) {
  std::vector<Chunk> chunks;
  for (size_t job = 0; job < counts.size(); ++job) {
    for (int64_t begin = 0; begin < counts[job]; begin += kChunkElements) {
      const int64_t left = counts[job] - begin;
      chunks.push_back({begin, static_cast<int32_t>(job),
                        static_cast<int32_t>(left < kChunkElements ? left : kChunkElements)});
    }
  }
  return chunks;
}

/// What packing finds out, in device memory.
struct Findings {
  unsigned long long first_bad;  ///< the smallest key of report(), all ones if there was none
  unsigned long long projected;  ///< masters that left the range of their held scales
};

/// Adds what the lanes of a warp counted; all of them call it.
__device__ inline void add_count(unsigned long long count, unsigned long long* counter) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    count += __shfl_xor_sync(kAllLanes, count, step);
  }
  if (threadIdx.x % kWarp == 0 && count > 0) atomicAdd(counter, count);
}

__device__ inline void report(unsigned long long* first_bad, int32_t job, int64_t position,
                              bool overflow) {
  const auto key = static_cast<unsigned long long>(job) << kProblemBits |
                   static_cast<unsigned long long>(position) * 2 | (overflow ? 1ull : 0ull);
  atomicMin(first_bad, key);
}

__device__ inline void load_eight(const float* from, float (&to)[kPerThread]) {
  for (int i = 0; i < kPerThread; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    to[i] = four.x;
    to[i + 1] = four.y;
    to[i + 2] = four.z;
    to[i + 3] = four.w;
  }
}

__device__ inline void store_eight(const float (&from)[kPerThread], float* to) {
  for (int i = 0; i < kPerThread; i += 4) {
    *reinterpret_cast<float4*>(to + i) =
        make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
  }
}

/// Where the weights to pack come from: the masters as they are. What projection moves is written
/// to `projected`, the same masters, unless that is null.
struct Masters {
  const float* master;
  float* projected = nullptr;
  __device__ void eight(int64_t at, bool, float (&w)[kPerThread]) const {
    load_eight(master + at, w);
  }
  __device__ float one(int64_t at) const { return master[at]; }
  __device__ void replace(int64_t at, float value) const {
    if (projected != nullptr) projected[at] = value;
  }
};

/// group / 8 threads hold a group, eight weights each: 32 bytes in, one word out.
template <typename Source>
__device__ void pack_groups(const PackJob& job, const Chunk& chunk, const Source& source,
                            unsigned long long* first_bad) {
  const int group = static_cast<int>(job.shape.group);
  const int lanes = group / kPerThread;
  // Every thread of a warp runs the same number of rounds, because shuffles need them all.
  for (int round = 0; round < chunk.count; round += kThreads * kPerThread) {
    const int offset = round + static_cast<int>(threadIdx.x) * kPerThread;
    const bool active = offset < chunk.count;
    const int64_t at = chunk.begin + (active ? offset : 0);
    float w[kPerThread];
    source.eight(at, active, w);
    float absmax = 0.0f;
    bool finite = true;
    for (int i = 0; i < kPerThread; ++i) {
      const uint16_t bits = quant::float_to_bf16(w[i]);
      // Of the master too, whose rounding may hide a NaN.
      finite = finite && quant::bf16_is_finite(bits) && isfinite(w[i]);
      w[i] = quant::bf16_to_float(bits);
      absmax = fmaxf(absmax, fabsf(w[i]));
    }
    for (int step = lanes / 2; step > 0; step /= 2) {
      absmax = fmaxf(absmax, __shfl_xor_sync(kAllLanes, absmax, step));
      finite = __shfl_xor_sync(kAllLanes, static_cast<int>(finite), step) != 0 && finite;
    }
    const uint16_t scale_bits = quant::group_scale(absmax, quant::Grid::kSym7);
    const float s = quant::bf16_to_float(scale_bits);
    uint32_t word = 0;
    for (int i = 0; i < kPerThread; ++i) {
      word |= quant::int4_bits(quant::quantize_code(w[i], s, quant::Grid::kSym7), i);
    }
    if (!active) continue;
    job.words[at / kPerThread] = word;
    if (offset % group != 0) continue;
    job.scale[at / group] = scale_bits;
    const bool overflow = !quant::bf16_is_finite(quant::dequantize_code(7, s));
    if (!finite || overflow) report(first_bad, chunk.job, at / group, finite);
  }
}

/// The same under held scales: no thread needs another's weights.
template <typename Source>
__device__ void pack_held_groups(const PackJob& job, const Chunk& chunk, const Source& source,
                                 Findings* findings) {
  const int group = static_cast<int>(job.shape.group);
  unsigned long long projected = 0;
  for (int offset = static_cast<int>(threadIdx.x) * kPerThread; offset < chunk.count;
       offset += kThreads * kPerThread) {
    const int64_t at = chunk.begin + offset;
    const uint16_t scale_bits = job.held[at / group];
    const quant::HeldRange range = quant::held_range(scale_bits);
    float w[kPerThread];
    source.eight(at, true, w);
    uint32_t word = 0;
    bool has_nan = false;
    for (int i = 0; i < kPerThread; ++i) {
      has_nan = has_nan || isnan(w[i]);
      const quant::HeldValue held = quant::hold(w[i], range);
      word |= quant::int4_bits(quant::quantize_held(held.value, range.scale), i);
      if (!held.projected) continue;
      source.replace(at + i, held.value);
      ++projected;
    }
    job.words[at / kPerThread] = word;
    if (offset % group == 0) job.scale[at / group] = scale_bits;
    if (has_nan) report(&findings->first_bad, chunk.job, at / group, false);
  }
  add_count(projected, &findings->projected);
}

template <typename Source>
__device__ void cast_values(const PackJob& job, const Chunk& chunk, const Source& source,
                            unsigned long long* first_bad) {
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kThreads) {
    const float value = source.one(chunk.begin + i);
    const uint16_t bits = quant::float_to_bf16(value);
    job.bf16[chunk.begin + i] = bits;
    if (!quant::bf16_is_finite(bits) || !isfinite(value)) {
      report(first_bad, chunk.job, chunk.begin + i, false);
    }
  }
}

template <typename Source>
__device__ void pack_chunk(const PackJob& job, const Chunk& chunk, const Source& source,
                           Findings* findings) {
  if (job.held != nullptr) {
    pack_held_groups(job, chunk, source, findings);
  } else if (job.words != nullptr) {
    pack_groups(job, chunk, source, &findings->first_bad);
  } else {
    cast_values(job, chunk, source, &findings->first_bad);
  }
}

struct AdamwFactors {
  float beta1, rest1, beta2, rest2, step_size, root_scale, eps, grad_scale, lr;
  uint32_t update;  // MomentDraw's
};

__device__ inline void load_eight(const uint16_t* from, float (&to)[kPerThread]) {
  for (int i = 0; i < kPerThread; ++i) to[i] = quant::bf16_to_float(from[i]);
}

/// Masters that are updated on the way: the operations of adamw_cpu.h, one rounding each.
class UpdatedMasters {
 public:
  __device__ UpdatedMasters(const AdamwJob& job, const AdamwFactors& f) : job_(job), f_(f) {
    keep_ = __fsub_rn(1.0f, __fmul_rn(f.lr, job.weight_decay));
  }
  __device__ void eight(int64_t at, bool active, float (&w)[kPerThread]) const {
    float m[kPerThread], v[kPerThread], g[kPerThread];
    load_eight(job_.master + at, w);
    load_eight(job_.grad + at, g);
    if (is_bf16()) {
      load_eight(job_.bf16.m + at, m);
      load_eight(job_.bf16.v + at, v);
    } else {
      load_eight(job_.m + at, m);
      load_eight(job_.v + at, v);
    }
    for (int i = 0; i < kPerThread; ++i) update(w[i], m[i], v[i], g[i]);
    if (!active) return;
    store_eight(w, job_.master + at);
    if (is_bf16()) {
      store_rounded(m, v, at);
    } else {
      store_eight(m, job_.m + at);
      store_eight(v, job_.v + at);
    }
  }
  __device__ float one(int64_t at) const {
    float w = job_.master[at];
    if (is_bf16()) {
      float m[1] = {quant::bf16_to_float(job_.bf16.m[at])};
      float v[1] = {quant::bf16_to_float(job_.bf16.v[at])};
      update(w, m[0], v[0], job_.grad[at]);
      store_rounded(m, v, at);
    } else {
      float m = job_.m[at], v = job_.v[at];
      update(w, m, v, job_.grad[at]);
      job_.m[at] = m;
      job_.v[at] = v;
    }
    job_.master[at] = w;
    return w;
  }
  __device__ void replace(int64_t at, float value) const { job_.master[at] = value; }

 private:
  __device__ bool is_bf16() const { return job_.bf16.m != nullptr; }
  template <int count>
  __device__ void store_rounded(const float (&m)[count], const float (&v)[count],
                                int64_t at) const {
    const quant::MomentDraw draw{job_.bf16.seed, job_.bf16.tensor, f_.update};
    PhiloxWords words;
    for (int i = 0; i < count; ++i) {
      const uint64_t place = job_.bf16.first + static_cast<uint64_t>(at + i);
      if (i == 0 || place % 4 == 0) words = quant::moment_words(draw, place / 4);
      job_.bf16.m[at + i] = quant::round_first_moment(m[i], words.word[place % 4]);
      job_.bf16.v[at + i] = quant::round_second_moment(v[i], words.word[place % 4]);
    }
  }
  __device__ void update(float& w, float& m, float& v, float grad) const {
    const float g = __fmul_rn(grad, f_.grad_scale);
    m = __fadd_rn(__fmul_rn(m, f_.beta1), __fmul_rn(g, f_.rest1));
    v = __fadd_rn(__fmul_rn(v, f_.beta2), __fmul_rn(__fmul_rn(g, g), f_.rest2));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f_.root_scale), f_.eps);
    w = __fsub_rn(__fmul_rn(w, keep_), __fmul_rn(f_.step_size, __fdiv_rn(m, denominator)));
  }
  const AdamwJob& job_;
  const AdamwFactors& f_;
  float keep_;  // of a weight: its decay
};

}  // namespace nibble::kernels::cuda
