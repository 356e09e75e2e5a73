#pragma once

#include <chrono>
#include <cstdint>

namespace nibble {

using SteadyClock = std::chrono::steady_clock;

/// Wall-clock time, for records that people read; never for deadlines.
inline int64_t unix_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

/// A point in monotonic time by which an operation must end. Pass one deadline through a whole
/// operation, so that nested waits cannot add up.
class Deadline {
 public:
  static Deadline after(std::chrono::milliseconds timeout) {
    return Deadline(SteadyClock::now() + timeout);
  }
  SteadyClock::time_point time() const { return at_; }
  bool expired() const { return SteadyClock::now() >= at_; }
  /// Never negative.
  std::chrono::milliseconds remaining() const {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(at_ - SteadyClock::now());
    return left.count() > 0 ? left : std::chrono::milliseconds(0);
  }

 private:
  explicit Deadline(SteadyClock::time_point at) : at_(at) {}
  SteadyClock::time_point at_;
};

/// Measures elapsed wall time from construction or the last restart().
class Stopwatch {
 public:
  double elapsed_ms() const {
    return std::chrono::duration<double, std::milli>(SteadyClock::now() - start_).count();
  }
  double restart_ms() {
    const double ms = elapsed_ms();
    start_ = SteadyClock::now();
    return ms;
  }

 private:
  SteadyClock::time_point start_ = SteadyClock::now();
};

}  // namespace nibble
