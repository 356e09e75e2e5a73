#pragma once

// Body of held_pack.h for one ISA; included only by isa_*.cc.

#include "core/kernels/held_pack.h"
#include "core/kernels/quantize_cpu.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

// Puts sixteen projected masters back where they came from, if their cast had left the range.
inline int64_t project_lanes(F32x16 rounded, F32x16 held, float* to) {
  float before[kLanes], after[kLanes];
  store(before, rounded);
  store(after, held);
  int64_t projected = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (before[lane] == after[lane]) continue;
    ++projected;
    if (to != nullptr) to[lane] = after[lane];
  }
  return projected;
}

// The arithmetic is core/quant/held_scale.h's, sixteen lanes at a time. Infinity is a master that
// left its range like any other; NaN is refused.
[[maybe_unused]] HeldGroupsResult hold_groups_isa(const HeldGroups& groups) {
  HeldGroupsResult result{-1, 0};
  for (int64_t g = 0; g < groups.count; ++g) {
    const quant::HeldRange& range = groups.range[g];
    const F32x16 first = splat(range.first);
    const F32x16 last = splat(range.last);
    const F32x16 scale = splat(range.scale);
    bool has_nan = false;
    for (int64_t i = g * groups.group; i < (g + 1) * groups.group; i += kLanes) {
      const F32x16 master = load(groups.master + i);
      // x * 0 is NaN for NaN and infinity, and only then are the lanes looked at.
      if (!(reduce_add(master * zero()) == 0.0f)) {
        for (int64_t lane = i; lane < i + kLanes; ++lane) {
          has_nan = has_nan || groups.master[lane] != groups.master[lane];
        }
      }
      const F32x16 rounded = round_bf16(master);
      const F32x16 held = minimum(maximum(rounded, first), last);
      if (reduce_max(absolute(rounded - held)) > 0.0f) {
        result.projected += project_lanes(
            rounded, held, groups.projected == nullptr ? nullptr : groups.projected + i);
      }
      const F32x16 code = minimum(maximum(round_even(held / scale), splat(-8.0f)), splat(7.0f));
      store_nibbles(groups.words + i / 8, code + splat(8.0f));
    }
    if (has_nan && result.first_bad < 0) result.first_bad = g;
  }
  return result;
}

}  // namespace
}  // namespace nibble::kernels
