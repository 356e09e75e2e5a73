#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine_board.h"
#include "coordinator/engine_fleet.h"
#include "coordinator/publication_attempt.h"
#include "coordinator/retry_pace.h"
#include "coordinator/worker_client.h"
#include "core/store/run_store.h"

namespace nibble {

/// What one publication cost.
struct PublishStats {
  int64_t version = 0;
  int64_t bytes = 0;      ///< on the wire, all engines
  double sync_ms = 0.0;   ///< whole transaction
  double wire_ms = 0.0;   ///< slowest engine, first byte awaited to last byte hashed
  double pause_ms = 0.0;  ///< longest pause of an engine
  int64_t engines = 0;    ///< that serve the version; the others are fenced
};

struct PublisherOptions {
  std::chrono::milliseconds timeout{120'000};  ///< of moving a version, and again of its commits
  int64_t min_bytes_per_s = 0;                 ///< see move_limit
  /// A fenced engine pulls the committed version from another while the job goes on; without this
  /// (engines that share a process with a sender) it takes part in the next publication.
  bool can_pull = true;
  /// Not 0: what changed since the committed version travels, and every so many versions a whole
  /// one.
  int64_t whole_every = 0;
  bool in_place = false;         ///< as EngineFleet, like the next
  int ranks = 1;                 ///< of each engine; `engines` are all of them
  EngineBoard* board = nullptr;  ///< borrowed; null: nobody looks
};

/// Publishes weight versions: the driver of Publication and EngineFleet, which decide; this carries
/// their calls out, each on a thread, writes the log and keeps the time. The decision is durable
/// before an engine swaps. An engine that fails or is late is fenced, said in the log and the run
/// store, and catches up in the background. One thread.
class WeightPublisher {
 public:
  /// Borrows all; they must outlive it.
  WeightPublisher(std::string job, int64_t epoch, std::vector<TrainerClient*> trainers,
                  std::vector<RolloutClient*> engines, RunStore& store, PublisherOptions options);
  /// Gives all workers up, so that calls that are still out end: nothing else may be asked of them.
  ~WeightPublisher();

  /// Publishes the trainers' current weights as the next version, trying again `retries` times.
  /// Throws what the last try threw.
  PublishStats publish(int64_t step, int64_t retries);

  /// Engines that serve the newest version, by the numbers of their first ranks.
  std::vector<int> serving();

 private:
  // What became of a pull. An engine that answers and yet did not catch up may be too slow for its
  // peers, which go on to later versions: the next publication waits for it.
  enum class Pulled { kCommitted, kFailed, kNoAnswer };
  struct Pull {
    int engine = 0;
    int peer = 0;
    int64_t version = 0;
    std::future<Pulled> outcome;
  };
  Pulled pull(const PublicationAttempt::Plan& plan) const;
  PublishStats try_publish(int64_t step, bool is_retry);
  void begin_transfer(int engine, int64_t version, const std::string& source);
  void post_standings();
  PublicationAttempt::Plan make_plan(std::vector<int> engines, int64_t version);
  void start_pulls();
  void start_pull(int engine, int peer);
  void collect_pulls();
  void note_outcome(int engine, bool has_committed);
  void note_caught_up(int engine, int64_t version);
  void note_fenced(const PublicationAttempt& attempt, const Publication& publication);

  const std::string job_;
  const std::vector<TrainerClient*> trainers_;
  const std::vector<RolloutClient*> engines_;
  RunStore& store_;
  const PublisherOptions options_;
  std::atomic<bool> is_ending_ = false;
  EngineFleet fleet_;
  RetryPace pace_;
  std::vector<bool> is_left_behind_;      // by engine: said so, and not yet that it is back
  std::vector<bool> has_failed_to_pull_;  // by engine, since it was fenced, though it answers
  int64_t version_ = 0;
  int64_t meetings_ = 0;
  std::vector<bool> met_;  // by engine: its group with the trainers stands
  std::vector<std::optional<EngineTransfer>> transfers_;  // by engine: in flight, for the board
  std::vector<std::unique_ptr<PublicationAttempt>> attempts_;  // some of whose calls are still out
  std::vector<Pull> pulls_;
};

}  // namespace nibble
