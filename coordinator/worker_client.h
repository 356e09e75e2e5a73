#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/membership.h"
#include "core/base/json.h"

namespace nibble {

/// Where the ranks of a process group meet.
struct MeetingPoint {
  std::string host;
  int port = 0;
  std::string group_name;
  std::chrono::milliseconds timeout{60'000};
};

/// A publication to one engine, as the coordinator names it. The digest is opaque here.
struct PublicationId {
  std::string job;
  int64_t epoch = 0;
  int64_t version = 0;
  std::string plan_digest;
  int64_t base_version = 0;   ///< not 0: what changed since it travels
  bool omits_frozen = false;  ///< what is the same in every version does not travel
};

/// How one side plans a publication; sides that differ in the digest must not exchange a byte.
struct PlanAnswer {
  std::string digest;
  int64_t bytes = 0;
  std::string manifest_text;
  int64_t served_version = 0;  ///< of an engine
  bool has_frozen = false;     ///< an engine that has what is the same in every version
};

/// Where a trained group's samples are.
struct GroupSource {
  uint64_t prompt_id = 0;
  std::string engine_address;
  int64_t computed_tokens = 0;
};

/// Who sends to an engine: the trainer ranks, or one engine that serves the version.
enum class WeightSource { kTrainers, kPeer };

/// One look at an engine's weights.
struct EngineStatus {
  std::string state;           ///< docs/weight_sync_protocol.md
  int64_t served_version = 0;  ///< 0: none
  std::string last_failure;
  int64_t epoch = 0;           ///< the lowest it accepts
  int64_t moving_version = 0;  ///< of the transaction in flight; 0: none
  int64_t arrived_bytes = 0;   ///< of that transaction, like the next
  int64_t expected_bytes = 0;
};

/// What one sender said it sent: opaque bytes for the receiver to compare.
struct SendAnswer {
  std::string report;
  int64_t bytes = 0;
  double wire_ms = 0.0;
};

/// Where a trainer rank goes on from.
struct CheckpointStart {
  int64_t step = 0;           ///< finished steps
  std::string rollout_state;  ///< what the checkpoint's save() was given
};

/// A limit that a step has passed (key `guards`).
struct GuardReport {
  struct Suspect {
    uint64_t prompt_id = 0;
    int64_t sample_index = 0;
    double log_prob_diff = 0.0;  ///< largest, trainer against rollout
    double measure = 0.0;        ///< what the watch ranks samples by
    bool is_finite = true;
  };
  std::string watch;
  std::string action;  ///< warn, skip, roll_back or stop
  double value = 0.0;
  double limit = 0.0;
  std::vector<Suspect> suspects;  ///< most suspicious first

  /// Adds another rank's.
  void add(const std::vector<Suspect>& others);
  std::string text() const;
};

struct TrainResult {
  std::map<std::string, double> figures;
  std::optional<GuardReport> guard;
};

/// Loss over held-out records, nats per token.
struct RecordsLoss {
  double loss = 0.0;
  int64_t tokens = 0;
  int64_t records = 0;
};

/// Calls to one trainer rank. Every call throws what the rank threw, Error{kDeadlineExceeded} after
/// its timeout, Error{kUnavailable} if the rank is gone; messages name call and worker.
class TrainerClient {
 public:
  explicit TrainerClient(const Member& member);
  ~TrainerClient();
  /// Returns the number of records of a supervised job.
  int64_t start(const MeetingPoint& at, std::chrono::milliseconds timeout);
  CheckpointStart load(const std::string& checkpoint, std::chrono::milliseconds timeout);
  TrainResult train(int64_t step, const std::vector<GroupSource>& groups,
                    std::chrono::milliseconds timeout);
  /// One supervised step on records of data.train, by their places: the whole global batch.
  std::map<std::string, double> train_records(int64_t step, const std::vector<int64_t>& records,
                                              std::chrono::milliseconds timeout);
  RecordsLoss evaluate_records(int64_t step, std::chrono::milliseconds timeout);
  /// Copies the rank's state for a checkpoint. `rollout_state`: JSON of the coordinator's, kept as
  /// it is. The next two may run beside any other call.
  void snapshot(const std::string& directory, int64_t step, int64_t version,
                const std::string& rollout_state, std::chrono::milliseconds timeout);
  void write_snapshot(int64_t step, std::chrono::milliseconds timeout);
  /// After all ranks have written; not `publish`: because one has not.
  void finish_snapshot(int64_t step, bool publish, std::chrono::milliseconds timeout);
  void join_engine(int engine, const MeetingPoint& at);
  PlanAnswer plan(int64_t epoch, int engine, const std::vector<std::string>& membership,
                  std::chrono::milliseconds timeout);
  /// `committed_version`: the rank keeps it; older ones go.
  SendAnswer send_weights(const PublicationId& publication, int engine,
                          const std::vector<std::string>& membership, int64_t committed_version,
                          std::chrono::milliseconds timeout);
  /// Ends calls under way, and every later one, with Error{kCancelled}. Safe from any thread.
  void give_up();
  const Member& member() const { return member_; }

 private:
  struct Stub;
  const Member member_;
  std::unique_ptr<Stub> stub_;
};

/// One prompt for an engine.
struct PromptTask {
  uint64_t prompt_id = 0;
  std::string content_json;
  std::string label_json;
  int64_t attempt = 0;  ///< told with its group
};

/// How samples are drawn.
struct DrawSettings {
  int64_t weight_version = 0;  ///< that the engine must serve when it is asked
  int64_t samples_per_prompt = 1;
  bool evaluation = false;
  uint64_t seed = 0;
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = 0;
  int64_t max_new_tokens = 1;
};

struct SampleResult {
  uint64_t prompt_id = 0;
  int64_t sample_index = 0;
  double reward = 0.0;
  int64_t response_tokens = 0;
  std::string finish_reason;
  std::string prompt_text;
  std::string response_text;
  std::string error;           ///< not empty: no reward, the sample was dropped
  int64_t oldest_version = 0;  ///< of the weights that drew its tokens; 0: it has none
};

/// A group that is whole and scored.
struct GroupResult {
  bool evaluation = false;
  int64_t attempt = 0;                ///< of its PromptTask
  GroupSource source;                 ///< where its samples are
  std::vector<SampleResult> samples;  ///< by sample index

  int64_t num_scored() const;
};

/// What an engine did for some groups.
struct EngineFigures {
  double generate_ms = 0.0;
  double reward_ms = 0.0;
  double draft_ms = 0.0;  ///< that guessing took
  int64_t prefill_tokens = 0;
  int64_t guessed_tokens = 0;        ///< checked by speculation
  int64_t accepted_tokens = 0;       ///< of these, drawn as guessed
  int64_t cached_prompt_tokens = 0;  ///< found in the engine's cache
  int64_t preemptions = 0;           ///< sequences stopped for want of memory

  EngineFigures& operator+=(const EngineFigures& other);
};

struct CollectResult {
  std::vector<GroupResult> groups;
  EngineFigures figures;
};

/// Calls to one rollout worker; errors as in TrainerClient.
class RolloutClient {
 public:
  explicit RolloutClient(const Member& member);
  ~RolloutClient();
  /// `at`: where the ranks of its engine meet, if it has several.
  void start(const MeetingPoint& at, std::chrono::milliseconds timeout);
  /// Queues prompts. They are computed while somebody collects.
  void submit(const std::vector<PromptTask>& prompts, const DrawSettings& settings,
              std::chrono::milliseconds timeout);
  /// Groups that have become whole: returns with the first, or after `wait` with none.
  CollectResult collect(std::chrono::milliseconds wait, std::chrono::milliseconds timeout);
  /// Ends what is under way of these groups of training, and forgets their samples.
  void release(const std::vector<uint64_t>& prompt_ids, std::chrono::milliseconds timeout);
  /// The samples that it keeps of a group, as messages for restore_group(). Opaque here.
  std::vector<std::string> fetch_group(uint64_t prompt_id, std::chrono::milliseconds timeout);
  /// Has the engine keep samples that another drew.
  void restore_group(const std::vector<std::string>& parts, std::chrono::milliseconds timeout);
  void join_trainers(const MeetingPoint& at, int num_trainers);
  void join_peer(const MeetingPoint& at, bool sends);
  EngineStatus status(std::chrono::milliseconds timeout);
  PlanAnswer plan(int64_t epoch, const std::vector<std::string>& membership, WeightSource source,
                  std::chrono::milliseconds timeout);
  void reserve(const PublicationId& publication, const std::vector<std::string>& membership,
               WeightSource source, std::chrono::milliseconds timeout);
  /// Returns the milliseconds from the first byte waited for to the last one hashed.
  double receive_weights(const PublicationId& publication, WeightSource source,
                         std::chrono::milliseconds timeout);
  /// As a peer: moves what it serves.
  SendAnswer send_weights(const PublicationId& publication,
                          const std::vector<std::string>& membership,
                          std::chrono::milliseconds timeout);
  void prepare(const PublicationId& publication, const std::vector<std::string>& reports,
               std::chrono::milliseconds timeout);
  /// Returns the pause of the engine in milliseconds.
  double commit(const PublicationId& publication, std::chrono::milliseconds timeout);
  void abort(const PublicationId& publication, const std::string& reason,
             std::chrono::milliseconds timeout);
  /// Ends calls under way, and every later one, with Error{kCancelled}. Safe from any thread.
  void give_up();
  const Member& member() const { return member_; }

 private:
  struct Stub;
  const Member member_;
  std::unique_ptr<Stub> stub_;
};

}  // namespace nibble
