#pragma once

#include <cstdint>
#include <string>

namespace nibble {

/// How fast steps go: says when the last one will be done.
class StepPace {
 public:
  void add(double step_ms);
  /// Time that `steps` more take at the recent pace: "3m05s", "1h02m".
  std::string time_left(int64_t steps) const;

 private:
  double mean_step_ms_ = 0.0;  // recent steps weigh more
};

}  // namespace nibble
