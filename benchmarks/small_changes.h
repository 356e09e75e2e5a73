#pragma once

#include <cstdint>

#include "core/kernels/weight_kernels.h"
#include "core/models/weights.h"

namespace nibble {

/// Changes the byte at `first` and every `stride`-th after it in each stored array (words, scales,
/// BF16 values), as a step of training might: a small delta. Blocks until it is done.
void change_every(const kernels::WeightKernels& kernels, ResidentWeights& weights, int64_t stride,
                  int64_t first);

/// Copies all of `from` to `to`, which has the same arrays. Blocks until it is done.
void copy_weights(const ResidentWeights& from, ResidentWeights& to);

}  // namespace nibble
