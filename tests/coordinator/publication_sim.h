#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "coordinator/engine_fleet.h"
#include "tests/coordinator/sim_model.h"
#include "tests/weight_sync/sim_transport.h"
#include "weight_sync/receiver.h"
#include "weight_sync/sender.h"

namespace nibble {

constexpr int64_t kSimDeadlineMs = 1000;  ///< of moving and preparing, and again of committing
constexpr int64_t kSimLateMs = 5000;      ///< a message may be this late

/// What a schedule did to the messages and the processes; each kind is counted.
enum class SimFault {
  kLostRequest,
  kLostReply,
  kLateRequest,
  kDuplicateRequest,
  kDuplicateReply,
  kFlippedBit,
  kTruncated,
  kSwappedBytes,
  kEngineCrash,
  kTrainerCrash,
  kCoordinatorCrashBeforeRecord,
  kCoordinatorCrashAfterRecord,
  kCoordinatorCrash,
  kLogFails,
  kShadowHeld,
};
constexpr size_t kNumSimFaults = 15;

struct SimCounts {
  std::array<int64_t, kNumSimFaults> faults{};
  int64_t committed = 0, aborted = 0, fenced = 0, pulled = 0, readmitted = 0, deltas = 0,
          poisoned = 0;
};

/// One seeded run of the protocol in one thread and simulated time: the real EngineFleet,
/// Publication, WeightSender and WeightReceiver, with messages that are lost, late, doubled and out
/// of order, bytes that change, and processes that crash and come back. Checks after every event:
///   I1, I4  an engine serves whole versions or, in place, nothing: its bytes hash to what the
///           trainers published
///   I2      a served version is in the log as committed
///   I3      an engine's versions and epochs only rise while its process lives
///   I5      a publication is decided by its deadline, and if no trainer, log or coordinator failed
///           and at most half of the engines were touched, the others serve it
///   I6      what is decided is decided for whole engines, with all their ranks
/// and at the end, when faults have stopped, that every engine gets to serve the last version.
class PublicationSim {
 public:
  PublicationSim(const SimModel& model, uint64_t seed, SimCounts& counts);
  /// Empty: all held; else what did not, with the last events.
  std::string run();

 private:
  struct Engine {
    std::unique_ptr<WeightReceiver> receiver;
    bool is_up = true;
    int64_t incarnation = 0;
    int64_t version = 0, epoch = 0;                 // highest seen of this incarnation
    int64_t serving = 0;                            // last seen and checked; 0: nothing
    std::shared_ptr<const ResidentWeights> held;    // by a sequence that is still running
    std::map<int64_t, PublicationReply> receiving;  // by attempt: receive() waits for its bytes
  };
  struct Trainer {
    std::unique_ptr<WeightSender> sender;
    bool is_up = true;
    int64_t published = 0;
  };
  // A publication to some engines, or a pull of one.
  struct Attempt {
    int64_t id = 0;
    Publication machine;
    std::vector<int> engines;
    std::vector<bool> on_trial;  // by place, like engines
    std::optional<int> peer;     // a pull
    std::vector<Transaction> transactions;
    std::vector<SyncPlan> plans;
    std::vector<std::shared_ptr<SimWay>> ways;
    int64_t began = 0, version = 0;
    std::set<int> touched;              // engines that a fault met
    bool is_touched_elsewhere = false;  // a trainer, the log or the coordinator
    std::optional<int64_t> recorded;    // when
  };
  struct Record {
    int64_t version = 0, epoch = 0;
    bool is_committed = false;
  };
  static const char* name_of(PublicationStep step);
  struct Event {
    int64_t time = 0, order = 0;
    std::function<void()> run;
    bool operator>(const Event& other) const {
      return std::pair(time, order) > std::pair(other.time, other.order);
    }
  };

  bool chance(double probability);
  bool all_serve() const { return std::ssize(fleet_->serving()) * ranks_ == std::ssize(engines_); }
  int64_t draw(int64_t low, int64_t high);
  void at(int64_t delay, std::function<void()> what);
  void count(SimFault fault) { ++counts_.faults[static_cast<size_t>(fault)]; }
  void note(const std::string& what);

  void start_engine(int engine);
  void start_coordinator();
  void begin_publication();
  void begin_pull();
  void begin(const std::shared_ptr<Attempt>& attempt);
  void dispatch(const std::shared_ptr<Attempt>& attempt, const std::vector<PublicationCall>& calls);
  void request(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call);
  void execute(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call);
  void execute_on_engine(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call);
  void send(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call);
  void finish_receive(const std::shared_ptr<Attempt>& attempt, int place, bool in_time);
  void answer(const std::shared_ptr<Attempt>& attempt, const PublicationReply& reply);
  void take(const std::shared_ptr<Attempt>& attempt, const PublicationReply& reply);
  void record(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call);
  void ended(const std::shared_ptr<Attempt>& attempt);
  void crash_engine(int engine);
  void crash_trainer(int trainer);
  void crash_coordinator(SimFault kind);
  void maybe_crash_somebody();
  void check();
  void check_ended(const Attempt& attempt);

  const SimModel& model_;
  std::mt19937_64 random_;
  SimCounts& counts_;
  double fault_probability_ = 0.0;
  bool in_place_ = false;  // engines with one weight buffer
  int ranks_ = 1;          // of each engine
  int64_t now_ = 0, order_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::vector<Engine> engines_;
  std::vector<Trainer> trainers_;
  std::vector<SenderReport> reports_;  // what a reply's text numbers
  // The coordinator: what it forgets in a crash, and what it does not.
  std::unique_ptr<EngineFleet> fleet_;
  std::map<int64_t, std::shared_ptr<Attempt>> attempts_;  // running, by id
  int64_t incarnation_ = 0;
  bool is_retry_ = false;
  std::vector<Record> log_;
  int64_t next_attempt_ = 0;
  int64_t publications_left_ = 0;
  std::string violation_;
  std::vector<std::string> notes_;
};

}  // namespace nibble
