#include "trainer/algo/schedule.h"

#include <cmath>
#include <numbers>

#include "core/base/fail.h"

namespace nibble {
namespace {

void check(const LrSchedule& schedule, int64_t steps_taken) {
  const auto is_rate = [](double rate) { return std::isfinite(rate) && rate >= 0; };
  if (!is_rate(schedule.lr) || !is_rate(schedule.min_lr) || !is_rate(schedule.init_lr)) {
    fail(ErrorCode::kInvalidArgument,
         "learning rates must be finite and >= 0: lr {}, min_lr {}, init_lr {}", schedule.lr,
         schedule.min_lr, schedule.init_lr);
  }
  if (steps_taken < 0 || schedule.warmup_steps < 0) {
    fail(ErrorCode::kInvalidArgument, "step counts must be >= 0: {} taken, {} of warm-up",
         steps_taken, schedule.warmup_steps);
  }
  if (schedule.style != LrStyle::kConstant && schedule.decay_steps <= schedule.warmup_steps) {
    fail(ErrorCode::kInvalidArgument,
         "the learning rate decays until step {}, which must lie after the {} steps of warm-up",
         schedule.decay_steps, schedule.warmup_steps);
  }
}

}  // namespace

double learning_rate(const LrSchedule& schedule, int64_t steps_taken) {
  check(schedule, steps_taken);
  const auto step = static_cast<double>(steps_taken);
  const auto warmup = static_cast<double>(schedule.warmup_steps);
  if (steps_taken < schedule.warmup_steps) {
    return schedule.init_lr + (schedule.lr - schedule.init_lr) * step / warmup;
  }
  if (schedule.style == LrStyle::kConstant) return schedule.lr;
  if (steps_taken >= schedule.decay_steps) return schedule.min_lr;
  const double done = (step - warmup) / (static_cast<double>(schedule.decay_steps) - warmup);
  const double left =
      schedule.style == LrStyle::kLinear ? 1 - done : 0.5 * (std::cos(std::numbers::pi * done) + 1);
  return schedule.min_lr + left * (schedule.lr - schedule.min_lr);
}

}  // namespace nibble
