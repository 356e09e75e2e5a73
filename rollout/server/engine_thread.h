#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "core/base/background_task.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "rollout/engine/engine.h"
#include "rollout/server/engine_job.h"

namespace nibble {

/// An engine with its weights set, and how to make what scores given tokens with the same weights.
struct ServedEngine {
  std::shared_ptr<const void> model;  // shared: whatever the others borrow from; goes last
  std::unique_ptr<Engine> engine;
  std::function<std::unique_ptr<GivenScorer>()> make_scorer;  ///< called when first needed
};

enum class EngineState { kLoading, kReady, kStopping, kStopped, kFailed };

/// What an engine's thread says about itself.
struct EngineSnapshot {
  EngineState state = EngineState::kLoading;
  std::string failure;  ///< of kFailed
  EngineStats stats;
  int64_t kv_slots = 0;
  int64_t version = 0;
  bool is_paused = false;
  int64_t open_samples = 0;  ///< submitted and not finished
  double step_s = 0.0;       ///< how long the step that is under way has taken so far
};

enum class EnqueueOutcome { kAccepted, kFull, kNotServing };

/// Where an engine lives. Any thread may call any method; none waits for a step.
class EngineThread {
 public:
  /// `make` will run on the thread, since an engine belongs to one. `capacity`: samples that may be
  /// open at a time; the engine's max_requests must not be lower.
  EngineThread(std::function<ServedEngine()> make, int64_t capacity);
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;
  ~EngineThread();

  /// Starts the thread, once. Until the engine is made, enqueue() says kNotServing.
  void start();

  struct Enqueued {
    EnqueueOutcome outcome = EnqueueOutcome::kNotServing;
    uint64_t job = 0;  ///< its number, if it was accepted
  };
  [[nodiscard]] Enqueued enqueue(EngineJob job);
  /// Ends a job before its time; its listener hears of kCancelled. Nothing if it is over.
  void cancel(uint64_t job);

  /// Stands still from the next step on, or goes on. Meanwhile jobs are accepted and wait, open
  /// ones keep what they have, and their deadlines hold. `done` is called by the engine's thread
  /// once that is so, or the engine has ended, and must be short; never if this returns false,
  /// which it does unless the engine serves.
  [[nodiscard]] bool set_paused(bool is_paused, std::function<void()> done);

  EngineSnapshot snapshot() const;
  int64_t capacity() const { return capacity_; }
  /// Rethrows what ended the thread, if something did.
  void check() const;

  /// Accepts nothing more, goes on if it is paused, waits until all jobs are over or until
  /// `deadline`, ends those left with kUnavailable, and lets the engine go. Waits for a step, or
  /// for the model, that is under way, but no longer than `for_step`: then it says false.
  bool stop(Deadline deadline, std::chrono::milliseconds for_step = std::chrono::hours(24 * 365));

 private:
  struct OpenJob {
    EngineJob job;
    std::vector<uint64_t> sample_ids;
    int64_t weight = 0;       // what it counts of capacity_
    int64_t num_missing = 0;  // samples and prompts
    size_t next_prompt = 0;   // to be scored
  };
  struct Arrival {
    uint64_t number;
    int64_t weight;
    EngineJob job;
  };

  void run(const std::stop_token& stop);
  void end(std::exception_ptr failure);
  void serve(const std::stop_token& stop);
  bool take_arrivals(const std::stop_token& stop);
  void note_step(bool begins);
  void settle_pause(bool is_paused, const std::vector<std::function<void()>>& done);
  void begin(Arrival arrival);
  void end_late_jobs();
  void score_prompts();
  void hand_out_finished();
  void end_job(uint64_t number, const Error& error);
  void end_all(const Error& error);
  void one_less(uint64_t number);
  void publish(EngineState state, const std::string& failure = {});

  const int64_t capacity_;
  const std::function<ServedEngine()> make_;

  // Of the engine's thread.
  ServedEngine served_;
  std::unique_ptr<GivenScorer> scorer_;
  uint64_t scored_job_ = 0;  // whose prompt the scorer works on
  std::map<uint64_t, OpenJob> jobs_;
  std::unordered_map<uint64_t, std::pair<uint64_t, size_t>>
      sample_of_;  // engine's id -> job, index
  uint64_t next_id_ = 1;

  mutable std::mutex mutex_;
  std::condition_variable_any wake_;
  std::condition_variable fewer_;
  std::condition_variable ended_;
  std::deque<Arrival> arrivals_;                   // guarded by mutex_
  std::vector<uint64_t> cancelled_;                // guarded by mutex_
  bool wants_pause_ = false;                       // guarded by mutex_
  std::vector<std::function<void()>> pause_done_;  // guarded by mutex_: told once it is so
  uint64_t next_job_ = 1;                          // guarded by mutex_
  int64_t num_open_ = 0;                           // guarded by mutex_
  bool is_closed_ = false;                         // guarded by mutex_: accepts nothing more
  std::exception_ptr failure_;                     // guarded by mutex_
  bool has_ended_ = false;                         // guarded by mutex_
  EngineSnapshot snapshot_;                        // guarded by mutex_
  std::optional<Stopwatch> in_step_;               // guarded by mutex_: since it began
  std::optional<BackgroundTask> thread_;           // last member
};

}  // namespace nibble
