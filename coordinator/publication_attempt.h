#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/publication.h"
#include "coordinator/worker_client.h"
#include "core/base/clock.h"
#include "core/base/error.h"

namespace nibble {

/// How long `bytes` may be on their way to one engine: as long as they need at the slowest rate
/// that is put up with, and some seconds; at most `timeout`, which has to do for the largest model.
/// So an engine or a link that stands still is given up sooner. `min_bytes_per_s` 0: `timeout`.
std::chrono::milliseconds move_limit(int64_t bytes, int64_t min_bytes_per_s,
                                     std::chrono::milliseconds timeout);

/// Carries out the calls of one Publication, each on a thread of its own, and hands it the replies.
/// Calls that are late outlive run(): the destructor waits for them.
class PublicationAttempt {
 public:
  struct Plan {
    std::vector<RolloutClient*> engines;  ///< borrowed, like all clients
    std::vector<TrainerClient*> trainers;
    RolloutClient* peer = nullptr;  ///< not null: the one sender, instead of the trainers
    std::vector<int> numbers;       ///< of the engines among all of the job
    std::vector<std::optional<MeetingPoint>> meetings;  ///< by engine: meet there first
    std::string job;
    int64_t epoch = 0;
    int64_t version = 0;
    int64_t committed_version = 0;         ///< that senders keep; 0: none
    bool sends_changes = false;            ///< since committed_version, to engines that serve it
    std::chrono::milliseconds timeout{0};  ///< of each phase
    int64_t min_bytes_per_s = 0;           ///< of moving, see move_limit
    /// Makes the decision durable; null: it is already.
    std::function<void(bool commits, const std::vector<int>& members, const std::string& digest)>
        record;
  };
  explicit PublicationAttempt(Plan plan) : plan_(std::move(plan)) {}
  ~PublicationAttempt();

  /// Runs `publication` to its end.
  void run(Publication& publication);

  const Plan& plan() const { return plan_; }
  /// The first error of an engine, by time.
  std::optional<Error> first_error() const;
  /// Set if a sender and an engine have different ideas of the weights, which no retry changes.
  std::optional<Error> disagreement() const;
  int64_t bytes() const;    ///< sent, to all engines
  double wire_ms() const;   ///< of the slowest engine
  double pause_ms() const;  ///< the longest
  bool has_calls_out() const;

 private:
  using Calls = std::vector<PublicationCall>;
  void start(const PublicationCall& call, const Publication& publication);
  PublicationReply execute(const PublicationCall& call, const std::vector<std::string>& reports);
  SendAnswer send(const PublicationCall& call);
  double commit(int engine);
  void plan_engine(int engine);
  void meet(int engine);
  PublicationReply record(const PublicationCall& call, const Publication& publication);
  std::optional<PublicationReply> wait_for_reply(Deadline deadline);
  std::vector<std::string> membership(int engine) const;
  PublicationId id(int engine) const;
  std::chrono::milliseconds limit_of_move(int engine) const;
  WeightSource source() const {
    return plan_.peer != nullptr ? WeightSource::kPeer : WeightSource::kTrainers;
  }

  const Plan plan_;
  mutable std::mutex mutex_;
  std::condition_variable replied_;
  std::deque<PublicationReply> replies_;  // guarded by mutex_, like all that follow
  std::vector<int64_t> bases_;            // by engine, once planned, like the next two
  std::vector<bool> omits_frozen_;
  std::vector<std::string> digests_;  // by engine, once planned, like the next
  std::vector<int64_t> planned_bytes_;
  std::optional<Error> first_error_;
  std::optional<Error> disagreement_;
  int64_t bytes_ = 0;
  double wire_ms_ = 0.0, pause_ms_ = 0.0;
  std::vector<std::future<void>> calls_;  // run()'s thread, then the destructor's
};

}  // namespace nibble
