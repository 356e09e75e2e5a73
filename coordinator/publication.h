#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// A message of a publication, to one engine or to one of its senders, or to the log.
enum class PublicationStep {
  kPlan,     ///< meet where the two sides have not, and compare plans
  kReserve,  ///< engine: set a shadow aside
  kReceive,  ///< engine: fill it
  kSend,     ///< sender: move its rows to the engine
  kPrepare,  ///< engine: verify, and promise to commit
  kRecord,   ///< log: make the decision durable
  kCommit,   ///< engine: serve the version
  kAbort,    ///< engine: drop the shadow
};
struct PublicationCall {
  PublicationStep step = PublicationStep::kPlan;
  int engine = 0;        ///< not of kRecord
  int sender = 0;        ///< of kSend
  bool commits = false;  ///< of kRecord: what was decided
  friend bool operator==(const PublicationCall&, const PublicationCall&) = default;
};
struct PublicationReply {
  PublicationCall to;
  std::string error;   ///< empty: done
  std::string report;  ///< of kSend: what was sent, for kPrepare
};

/// What is known of an engine.
enum class EngineState {
  kBusy,       ///< on its way to kPrepared
  kPrepared,   ///< verified the version and will commit when told to
  kFenced,     ///< failed or was late: this version goes on without it
  kCommitted,  ///< says that it serves the version
};

/// The coordinator's side of one version on its way to all engines (docs/weight_sync_protocol.md):
/// which message comes next, who is fenced, and what is decided. It sends nothing and has no clock:
/// the caller carries out the calls it names, in any order and as many at once as it likes, and
/// says what came of each. Replies may come late, twice or never. One thread.
///
/// An engine that fails or answers late is fenced: the others go on without it. Once no engine is
/// on its way any more, the version is committed if at least half of the engines are prepared, else
/// aborted; the decision is recorded before an engine hears of it. Engines on trial, which failed
/// before, have no say in that, unless there are no others.
///
/// An engine of several ranks (rollout.tensor) counts as so many engines here, each with messages
/// of its own; until the decision, ranks of one engine are fenced together.
class Publication {
 public:
  /// `num_senders` per engine. `on_trial` by engine; empty: none is. Each `ranks` numbers in a row
  /// are one engine's.
  Publication(int num_engines, int num_senders, const std::vector<bool>& on_trial = {},
              int ranks = 1);

  /// The first calls.
  std::vector<PublicationCall> begin();
  /// What follows from a reply. One that is late or was given before has no effect.
  std::vector<PublicationCall> take(const PublicationReply& reply);
  /// The deadline has passed: engines that are not prepared are fenced, commits are not waited for.
  /// Without effect while the decision is being recorded.
  std::vector<PublicationCall> expire();

  /// Nothing is waited for any more: the version is decided, and each engine has committed or will
  /// not say.
  bool is_done() const { return phase_ == Phase::kDone; }
  bool is_decided() const { return phase_ >= Phase::kCommitting; }
  /// Once decided.
  bool is_committed() const { return is_committed_; }
  EngineState state(int engine) const { return engines_[static_cast<size_t>(engine)].state; }
  /// Engines that had prepared when it was decided.
  const std::vector<int>& members() const { return members_; }
  /// Why an engine was fenced.
  const std::string& failure(int engine) const {
    return engines_[static_cast<size_t>(engine)].failure;
  }
  /// What the senders reported to an engine, by sender.
  const std::vector<std::string>& reports(int engine) const {
    return engines_[static_cast<size_t>(engine)].reports;
  }

 private:
  enum class Phase { kMoving, kRecording, kCommitting, kDone };
  struct Engine {
    EngineState state = EngineState::kBusy;
    PublicationStep step = PublicationStep::kPlan;  // awaited
    bool is_on_trial = false;
    bool has_received = false;
    std::vector<std::string> reports;
    std::vector<bool> has_sent;
    std::string failure;
  };
  using Calls = std::vector<PublicationCall>;
  void advance(int engine, const PublicationReply& reply, Calls& calls);
  void fence(int engine, const std::string& why, Calls& calls);
  void fence_one(int engine, const std::string& why, Calls& calls);
  void decide_if_possible(Calls& calls);
  void recorded(const PublicationReply& reply, Calls& calls);
  void finish_if_possible();

  const int num_senders_;
  const int ranks_;
  std::vector<Engine> engines_;
  Phase phase_ = Phase::kMoving;
  bool is_committed_ = false;
  std::vector<int> members_;
};

}  // namespace nibble
