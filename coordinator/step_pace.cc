#include "coordinator/step_pace.h"

#include <fmt/format.h>

namespace nibble {

void StepPace::add(double step_ms) {
  mean_step_ms_ = mean_step_ms_ == 0.0 ? step_ms : 0.8 * mean_step_ms_ + 0.2 * step_ms;
}

std::string StepPace::time_left(int64_t steps) const {
  const auto seconds = static_cast<int64_t>(static_cast<double>(steps) * mean_step_ms_ / 1000.0);
  return seconds >= 3600 ? fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60)
                         : fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
}

}  // namespace nibble
