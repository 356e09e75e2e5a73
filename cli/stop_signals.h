#pragma once

#include <chrono>

namespace nibble {

/// Waits for SIGINT and SIGTERM instead of dying of them. Make it before any other thread is
/// started: threads inherit that the signals wait. One per process, on the main thread.
class StopSignals {
 public:
  StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  ~StopSignals();

  /// True if one has come within `wait`. From then on the next one kills the process at once.
  bool wait_for(std::chrono::milliseconds wait);

 private:
  bool is_holding_ = true;
};

}  // namespace nibble
