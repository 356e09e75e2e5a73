#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "benchmarks/pair_member.h"
#include "core/base/background_task.h"
#include "core/base/clock.h"
#include "core/models/decoder.h"
#include "rollout/engine/engine.h"
#include "weight_sync/receiver.h"

namespace nibble {

/// An engine on a thread of its own that decodes a full batch without end, and swaps weights
/// between two steps. One other thread calls the methods.
class Generation {
 public:
  struct Step {
    SteadyClock::time_point begin, end;
    int64_t tokens = 0;
    double ms() const { return std::chrono::duration<double, std::milli>(end - begin).count(); }
  };

  Generation(const ModelSpec& spec, Member& member, int64_t batch, int64_t context);

  /// Serves `weights` from the next step on; returns the milliseconds that the swap took, after the
  /// step in flight.
  double swap(ServedWeights weights);
  /// Starts generating, or stops after the step in flight.
  void set_running(bool running);
  /// Returns when `count` more steps of the whole batch are done.
  void wait_for_steps(size_t count);
  /// The decoding steps of the whole batch so far.
  std::vector<Step> steps() const;
  int64_t batch() const { return batch_; }

 private:
  void run(const std::stop_token& stop);
  void step();
  template <typename Condition>
  void wait_until(Condition condition);

  const int64_t batch_;  // constant after construction, like the next one
  const int64_t context_;
  const std::unique_ptr<Engine> engine_;  // the thread's
  uint64_t next_id_ = 0;                  // the thread's
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::optional<ServedWeights> pending_;  // guarded by mutex_, like the next three
  double swap_ms_ = 0.0;
  bool is_running_ = false;
  std::vector<Step> steps_;
  BackgroundTask task_;  // last: it ends before the rest goes away
};

}  // namespace nibble
