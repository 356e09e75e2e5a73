#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/base/clock.h"

namespace nibble {

/// When an engine that was left behind may try to come back: at once after one failure, then 1, 2,
/// 4 ... seconds after each further one, so that an engine that fails again and again costs the
/// others little. Some publications without a failure, and it is as before. Holds no clock.
class RetryPace {
 public:
  explicit RetryPace(int num_engines) : engines_(static_cast<size_t>(num_engines)) {}
  /// It was fenced, or did not catch up.
  void failed(int engine, SteadyClock::time_point now) {
    Engine& it = engines_[static_cast<size_t>(engine)];
    it.committed = 0;
    it.not_before = now + delay(it.failures++);
  }
  /// It committed what was published.
  void committed(int engine) {
    Engine& it = engines_[static_cast<size_t>(engine)];
    if (++it.committed >= kProbation) it.failures = 0;
  }
  bool may_try(int engine, SteadyClock::time_point now) const {
    return now >= engines_[static_cast<size_t>(engine)].not_before;
  }

 private:
  static constexpr int kProbation = 8;  // publications
  static constexpr std::chrono::seconds kLongest{300};
  static std::chrono::seconds delay(int failures_before) {
    if (failures_before == 0) return std::chrono::seconds(0);
    return std::min(kLongest, std::chrono::seconds(int64_t{1} << std::min(failures_before - 1, 9)));
  }
  struct Engine {
    int failures = 0;
    int committed = 0;  // in a row
    SteadyClock::time_point not_before{};
  };
  std::vector<Engine> engines_;
};

}  // namespace nibble
