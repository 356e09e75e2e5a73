#pragma once

#include <cstdint>

namespace nibble {

enum class LrStyle { kConstant, kLinear, kCosine };

struct LrSchedule {
  LrStyle style = LrStyle::kConstant;
  double lr = 1e-6;          ///< reached at the end of the warm-up
  double min_lr = 0;         ///< from decay_steps on; linear and cosine
  double init_lr = 0;        ///< where the warm-up starts
  int64_t warmup_steps = 0;  ///< linear warm-up; 0 = none
  int64_t decay_steps = 0;   ///< step at which min_lr is reached; linear and cosine
};

/// Learning rate of the update after `steps_taken` updates: the first one uses steps_taken = 0 (its
/// rate is init_lr under a warm-up). Megatron's rule; equal to Transformers' schedulers where
/// min_lr = init_lr = 0. Throws Error{kInvalidArgument} for a negative step count, rates that are
/// negative or not finite, and a decay that ends before or at the warm-up.
double learning_rate(const LrSchedule& schedule, int64_t steps_taken);

}  // namespace nibble
