#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/clock.h"

namespace nibble {

/// What the coordinator counts an engine as.
enum class EngineStanding {
  kStarting,  ///< nothing has been published to it
  kServing,   ///< it serves the newest committed version
  kFenced,    ///< a version went on without it: it generates nothing until it has caught up
};

/// Weights on their way to an engine.
struct EngineTransfer {
  int64_t version = 0;
  std::string source;  ///< "trainers", or the id of the engine it pulls from
  SteadyClock::time_point since;
};

struct EngineNote {
  EngineStanding standing = EngineStanding::kStarting;
  std::optional<EngineTransfer> transfer = {};
};

/// Where the publisher leaves what it knows of the engines, for whoever asks while a job runs. It
/// asks nobody, so an engine that hangs holds up no reader. Any thread may call any method.
class EngineBoard {
 public:
  struct State {
    int64_t epoch = 0;                ///< 0: no publisher yet
    int64_t version = 0;              ///< newest committed; 0: none
    std::vector<EngineNote> engines;  ///< by engine number
  };
  void post(State state) {
    const std::lock_guard lock(mutex_);
    state_ = std::move(state);
  }
  State read() const {
    const std::lock_guard lock(mutex_);
    return state_;
  }

 private:
  mutable std::mutex mutex_;
  State state_;  // guarded by mutex_
};

}  // namespace nibble
