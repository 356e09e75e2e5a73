#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/saved_groups.h"
#include "coordinator/worker_client.h"
#include "core/base/background_task.h"
#include "core/base/clock.h"

namespace nibble {

/// All engines as one place where prompts go in and whole, scored groups come out. A group stays on
/// one engine; which one does not change its samples. While the pool runs, two threads an engine
/// collect from it: one has it compute while the other has the last group scored. One thread calls
/// the methods.
class RolloutPool {
 public:
  /// Borrows the engines (of one of several ranks, the first). `timeout`: of a call to one.
  RolloutPool(std::vector<RolloutClient*> engines, std::chrono::milliseconds timeout);
  /// Waits for the calls that are out, which the owner of the clients may give up before.
  ~RolloutPool();

  /// What is gone with engines that do not answer.
  struct Lost {
    std::set<std::string> engines;     ///< addresses
    std::vector<uint64_t> prompt_ids;  ///< whole groups of training that waited to be taken
  };
  /// Engines, by their places, that may compute. Groups under way on another begin anew on these,
  /// with `version`; whole ones are lost if it does not even answer. Throws Error{kUnavailable} if
  /// no engine serves.
  /// `holders`: addresses of engines whose samples the caller still wants.
  Lost set_serving(const std::vector<int>& engines, int64_t version, std::set<std::string> holders);
  /// Queues prompts where least is under way. Names must be unique among groups of one kind.
  void submit(const std::vector<PromptTask>& prompts, const DrawSettings& settings);
  /// The first group that became whole, of an evaluation or of training. Throws
  /// Error{kDeadlineExceeded} if none does in time, and what an engine threw.
  GroupResult next(bool evaluation, Deadline deadline);

  /// Groups of training that are under way or wait to be taken.
  int64_t num_open() const;
  /// Of one moment.
  struct Open {
    std::vector<uint64_t> unfinished;  ///< under way, ascending
    std::vector<GroupResult> whole;    ///< waiting to be taken, in their order
  };
  Open open() const;
  /// Ends them, and says how many they were.
  int64_t drop_open();
  /// Their samples will not be asked for again; engines are told with the next prompts.
  void release(const std::vector<GroupSource>& groups);

  /// A group's samples, from the engine that keeps them.
  SavedGroup fetch(const GroupResult& group);
  /// Hands an engine a group that was drawn before; it then waits to be taken, as if drawn now.
  void adopt(SavedGroup saved);

  /// Groups that are under way grow only while the pool runs, as it does from the start; what the
  /// engines are at when it stops they go on with for twice kWait at most.
  void run(bool runs);

  /// What engines did since the last call; of the times the longest.
  EngineFigures take_figures();

 private:
  static constexpr std::chrono::milliseconds kWait{50};
  static constexpr std::chrono::milliseconds kSoon{2'000};
  static constexpr std::chrono::milliseconds kFetch{60'000};
  using Name = std::pair<bool, uint64_t>;  // evaluation, prompt id
  struct Pending {
    PromptTask prompt;
    std::shared_ptr<const DrawSettings> settings;
  };
  struct Engine {
    RolloutClient* client = nullptr;
    bool serves = true;
    std::map<Name, Pending> open;  // under way on it
    std::set<uint64_t> released;   // of training, to be told
    EngineFigures figures;
    std::exception_ptr failure;  // of a collector
  };

  void collect(size_t engine, const std::stop_token& stop);
  void take(Engine& engine, CollectResult result);
  Lost lose_groups_of(const std::vector<RolloutClient*>& engines);
  void distribute(std::vector<Pending> pending);
  RolloutClient& engine_of(const GroupSource& source);

  const std::chrono::milliseconds timeout_;
  mutable std::mutex mutex_;  // guards all that follows
  std::condition_variable_any changed_;
  std::vector<Engine> engines_;
  std::deque<GroupResult> done_;
  size_t num_adopted_ = 0;
  int64_t num_attempts_ = 0;
  bool runs_ = true;
  std::vector<std::unique_ptr<BackgroundTask>> collectors_;  // last member
};

}  // namespace nibble
