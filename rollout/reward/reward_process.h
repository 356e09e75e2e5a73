#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/json.h"
#include "core/base/limited_process.h"
#include "core/base/line_buffer.h"
#include "rollout/reward/reward_protocol.h"

namespace nibble {

struct RewardProcessOptions {
  std::vector<std::string> command;                 ///< e.g. {"bin/nibble-reward", "exact"}
  std::chrono::milliseconds start_timeout{30'000};  ///< until the worker says that it is ready
  std::chrono::milliseconds sample_timeout{5'000};  ///< for one sample, from when it is its turn
  int max_in_flight = 32;                           ///< samples sent ahead of their replies
  ProcessLimits limits;
};

struct RewardSample {
  std::string response;
  Json label;
};

/// Scores samples in a limited process of their own. A worker that hangs, crashes or talks garbage
/// is killed and started anew; the sample whose turn it was is tried once more, those behind it are
/// sent again. One thread, the one that made it (see LimitedProcess).
class RewardProcess {
 public:
  /// Starts the worker and waits until it is ready. Throws Error{kUnavailable} if it ends or talks
  /// garbage instead, Error{kDeadlineExceeded} after start_timeout, Error{kInvalidArgument} for
  /// options out of range.
  explicit RewardProcess(RewardProcessOptions options);

  /// Outcomes in the order of the samples; takes at most two sample_timeouts and one start for each
  /// sample that fails. An Error in place of a score is one of
  ///   kDeadlineExceeded  no reply in time, twice          kUnavailable  the worker died, twice, or
  ///                                                       could not be started again
  ///   any other          the scorer's own, not retried: the response or label cannot be scored
  std::vector<RewardOutcome> score(std::span<const RewardSample> samples);

  /// How often a worker was started again.
  int64_t num_restarts() const { return num_restarts_; }
  /// Process id of the worker; -1 if none runs.
  pid_t pid() const { return worker_ ? worker_->pid() : -1; }

 private:
  struct Batch;  // one call of score()

  void start();
  void exchange(Batch& batch);
  void recover(Batch& batch, const Error& cause);
  void send_ahead(Batch& batch);
  void receive(Batch& batch);
  void wait(bool wants_to_send, Deadline deadline, const char* what);

  const RewardProcessOptions options_;
  std::unique_ptr<LimitedProcess> worker_;  // null: could not be started again
  LineBuffer lines_{kMaxReplyBytes};
  int64_t next_id_ = 1;  // never reused, so a stray reply fits no sample
  int64_t num_restarts_ = 0;
};

}  // namespace nibble
