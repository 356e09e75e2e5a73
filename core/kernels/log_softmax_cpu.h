#pragma once

// Body of log_softmax.h for one ISA; included only by isa_*.cc.

#include "core/kernels/log_softmax.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

inline RowStats row_stats(const float* logits, int64_t vocab, float temperature) {
  const F32x16 divisor = splat(temperature);
  const float lowest = -__builtin_inff();
  F32x16 top = splat(lowest);
  for (int64_t i = 0; i < vocab; i += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, vocab - i));
    top = maximum(top, load_partial(logits + i, n, lowest) / divisor);
  }
  RowStats stats;
  stats.max = reduce_max(top);
  const F32x16 highest = splat(stats.max);
  F32x16 sum = zero();
  F32x16 weighted = zero();
  for (int64_t i = 0; i < vocab; i += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, vocab - i));
    const F32x16 z = load_partial(logits + i, n, 0.0f) / divisor - highest;
    float e[kLanes];
    store(e, exponential(z));
    const F32x16 kept = load_partial(e, n, 0.0f);
    sum = sum + kept;
    weighted = fma(kept, z, weighted);
  }
  const float total = reduce_add(sum);
  stats.log_sum = static_cast<float>(__builtin_log(static_cast<double>(total)));
  stats.entropy = stats.log_sum - reduce_add(weighted) / total;
  return stats;
}

void log_softmax_stats_isa(const float* logits, int64_t rows, int64_t vocab, float temperature,
                           RowStats* stats, const Parallel& parallel) {
  parallel.run(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      stats[r] = row_stats(logits + r * vocab, vocab, temperature);
    }
  });
}

void log_prob_backward_isa(float* logits, const RowStats* stats, const int32_t* target,
                           const RowGrads& grads, int64_t rows, int64_t vocab, float temperature,
                           const Parallel& parallel) {
  const F32x16 divisor = splat(temperature);
  parallel.run(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = logits + r * vocab;
      const F32x16 shift = splat(stats[r].max + stats[r].log_sum);
      const float g = grads.log_prob[r] / temperature;
      const F32x16 minus_g = splat(-g);
      const bool has_entropy = grads.entropy != nullptr;
      const F32x16 e = splat(has_entropy ? grads.entropy[r] / temperature : 0.0f);
      const F32x16 entropy = splat(stats[r].entropy);
      for (int64_t i = 0; i < vocab; i += kLanes) {
        const int n = static_cast<int>(min_of(kLanes, vocab - i));
        const F32x16 log_p = load_partial(row + i, n, 0.0f) / divisor - shift;
        const F32x16 factor = has_entropy ? minus_g - e * (log_p + entropy) : minus_g;
        store_partial(row + i, n, exponential(log_p) * factor);
      }
      row[target[r]] += g;
    }
  });
}

// exp(z - max) of sixteen logits; lanes past the row are 0.
inline F32x16 unnormalized(const float* logits, int64_t i, int64_t vocab, float temperature,
                           float max) {
  const int n = static_cast<int>(min_of(kLanes, vocab - i));
  float e[kLanes];
  store(e, exponential(load_partial(logits + i, n, 0.0f) / splat(temperature) - splat(max)));
  return load_partial(e, n, 0.0f);
}

constexpr int64_t kSampleBlock = 1024;

// Inverts the cumulative distribution over tokens whose logit is >= floor. Block sums first, so
// that the scan touches one block; double sums keep the order irrelevant at float resolution.
int32_t sample_row_isa(const float* logits, int64_t vocab, float temperature, float floor,
                       double uniform) {
  float highest = logits[0];
  for (int64_t i = 1; i < vocab; ++i) highest = logits[i] > highest ? logits[i] : highest;
  const float max = highest / temperature;
  const auto weight_sum = [&](int64_t begin, int64_t end, double stop_at, int64_t* stopped) {
    double sum = 0.0;
    for (int64_t i = begin; i < end; i += kLanes) {
      float e[kLanes];
      store(e, unnormalized(logits, i, vocab, temperature, max));
      for (int64_t lane = 0; lane < min_of(kLanes, end - i); ++lane) {
        if (logits[i + lane] < floor) continue;
        sum += static_cast<double>(e[lane]);
        if (stopped != nullptr) {
          if (sum > stop_at) {
            *stopped = i + lane;
            return sum;
          }
        }
      }
    }
    return sum;
  };
  double total = 0.0;
  for (int64_t b = 0; b < vocab; b += kSampleBlock) {
    total += weight_sum(b, min_of(b + kSampleBlock, vocab), 0.0, nullptr);
  }
  const double target = uniform * total;
  double before = 0.0;
  for (int64_t b = 0; b < vocab; b += kSampleBlock) {
    const int64_t end = min_of(b + kSampleBlock, vocab);
    const double sum = weight_sum(b, end, 0.0, nullptr);
    if (before + sum > target) {
      int64_t token = -1;
      weight_sum(b, end, target - before, &token);
      if (token >= 0) return static_cast<int32_t>(token);
    }
    before += sum;
  }
  // Rounding left the target at the very end: the last token that may be drawn.
  for (int64_t i = vocab - 1; i > 0; --i) {
    if (logits[i] >= floor && logits[i] / temperature - max > -87.0f)
      return static_cast<int32_t>(i);
  }
  return 0;
}

}  // namespace
}  // namespace nibble::kernels
