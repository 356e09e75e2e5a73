#include "coordinator/weight_publisher.h"

#include <algorithm>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

// Above every epoch that a message of before a restart may carry: fencing and pulls raise it
// between two records of the log.
constexpr int64_t kEpochsOfOneLife = 1000;

int64_t first_epoch(int64_t epoch, const RunStore& store) {
  for (const VersionRecord& record : store.versions()) {
    epoch = std::max(epoch, record.epoch + kEpochsOfOneLife);
  }
  return epoch;
}

// No retry changes it.
class Disagreement final : public Error {
 public:
  explicit Disagreement(const Error& error) : Error(error) {}
};

}  // namespace

WeightPublisher::WeightPublisher(std::string job, int64_t epoch,
                                 std::vector<TrainerClient*> trainers,
                                 std::vector<RolloutClient*> engines, RunStore& store,
                                 PublisherOptions options)
    : job_(std::move(job)),
      trainers_(std::move(trainers)),
      engines_(std::move(engines)),
      store_(store),
      options_(options),
      fleet_(static_cast<int>(engines_.size()), first_epoch(epoch, store), options_.in_place,
             options_.ranks),
      pace_(static_cast<int>(engines_.size())),
      is_left_behind_(engines_.size(), false),
      has_failed_to_pull_(engines_.size(), false),
      met_(engines_.size(), false),
      transfers_(engines_.size()) {
  // Version numbers never come back, also after a crash between prepare and decision.
  for (const VersionRecord& record : store_.undecided_versions()) {
    VersionRecord aborted = record;
    aborted.decision = Decision::kAborted;
    store_.record_version(aborted);
  }
  for (const VersionRecord& record : store_.versions()) {
    version_ = std::max(version_, record.version);
  }
  post_standings();
}

WeightPublisher::~WeightPublisher() {
  is_ending_ = true;
  for (TrainerClient* trainer : trainers_) trainer->give_up();
  for (RolloutClient* engine : engines_) engine->give_up();
}

PublicationAttempt::Plan WeightPublisher::make_plan(std::vector<int> engines, int64_t version) {
  PublicationAttempt::Plan plan;
  plan.trainers = trainers_;
  plan.numbers = std::move(engines);
  plan.job = job_;
  plan.epoch = fleet_.epoch();
  plan.version = version;
  plan.committed_version = fleet_.version();
  plan.timeout = options_.timeout;
  plan.min_bytes_per_s = options_.min_bytes_per_s;
  for (const int e : plan.numbers) {
    const auto place = static_cast<size_t>(e);
    plan.engines.push_back(engines_[place]);
    const Member& host = engines_[place]->member();
    plan.meetings.emplace_back();
    if (met_[place]) continue;
    plan.meetings.back() =
        MeetingPoint{host.host, host.rendezvous_port,
                     fmt::format("{}-sync-{}-{}", job_, e, ++meetings_), options_.timeout};
  }
  return plan;
}

void WeightPublisher::begin_transfer(int engine, int64_t version, const std::string& source) {
  transfers_[static_cast<size_t>(engine)] = EngineTransfer{version, source, SteadyClock::now()};
}

void WeightPublisher::post_standings() {
  if (options_.board == nullptr) return;
  EngineBoard::State state{fleet_.epoch(), fleet_.version(), {}};
  for (int e = 0; e < fleet_.size(); ++e) {
    const bool is_behind = fleet_.is_fenced(e) || fleet_.is_on_trial(e);
    const EngineStanding standing = is_behind          ? EngineStanding::kFenced
                                    : fleet_.serves(e) ? EngineStanding::kServing
                                                       : EngineStanding::kStarting;
    state.engines.push_back({standing, transfers_[static_cast<size_t>(e)]});
  }
  options_.board->post(std::move(state));
}

PublishStats WeightPublisher::try_publish(int64_t step, bool is_retry) {
  const Stopwatch clock;
  collect_pulls();
  if (!options_.can_pull) {
    for (const int e : fleet_.behind()) {
      if (pace_.may_try(e, SteadyClock::now())) fleet_.readmit(e);
    }
  }
  const std::vector<int> members = fleet_.members();
  if (members.empty()) {
    fail(ErrorCode::kUnavailable, "no engine can take a version: all are catching up");
  }
  const bool is_first = fleet_.version() == 0;
  VersionRecord record{++version_, fleet_.epoch(), step, Decision::kPrepared, {}, "", unix_ms()};
  store_.record_version(record);  // the number never comes back
  PublicationAttempt::Plan plan = make_plan(members, version_);
  plan.sends_changes =
      options_.whole_every > 0 && !is_retry && version_ % options_.whole_every != 0;
  for (const int e : members) begin_transfer(e, version_, "trainers");
  post_standings();
  const PublicationAttempt* under_way = nullptr;
  plan.record = [&, this](bool commits, const std::vector<int>& engines,
                          const std::string& digest) {
    const auto disagreement = under_way->disagreement();
    if (is_first && disagreement) {  // the job has just begun: better put right now
      record.decision = Decision::kAborted;
      store_.record_version(record);
      throw Error(*disagreement);
    }
    for (const int e : engines) {
      record.members.push_back(engines_[static_cast<size_t>(e)]->member().id);
    }
    record.digest = digest;
    record.decision = commits ? Decision::kCommitted : Decision::kAborted;
    store_.record_version(record);  // durable from here on: every member must follow
  };
  auto attempt = std::make_unique<PublicationAttempt>(std::move(plan));
  under_way = attempt.get();
  std::vector<bool> on_trial(members.size());
  for (size_t i = 0; i < members.size(); ++i) on_trial[i] = fleet_.is_on_trial(members[i]);
  Publication publication(static_cast<int>(members.size()), static_cast<int>(trainers_.size()),
                          on_trial, options_.ranks);
  attempt->run(publication);
  fleet_.publication_ended(version_, members, publication);
  for (const int e : members) transfers_[static_cast<size_t>(e)].reset();
  post_standings();
  for (size_t i = 0; i < members.size(); ++i) {
    const int engine = static_cast<int>(i);
    // A failed transfer spends its process group.
    met_[static_cast<size_t>(members[i])] = publication.failure(engine).empty();
    note_outcome(members[i], publication.state(engine) == EngineState::kCommitted &&
                                 !fleet_.is_fenced(members[i]));
  }
  const PublicationAttempt& ended = *attempt;
  std::erase_if(attempts_, [](const auto& earlier) { return !earlier->has_calls_out(); });
  attempts_.push_back(std::move(attempt));
  note_fenced(ended, publication);
  if (!publication.is_committed()) {
    if (const auto disagreement = ended.disagreement(); is_first && disagreement) {
      throw Disagreement(*disagreement);
    }
    throw ended.first_error().value_or(
        Error(ErrorCode::kDeadlineExceeded,
              fmt::format("version {} was not ready in time on {} of {} engines", version_,
                          members.size() - publication.members().size(), members.size())));
  }
  PublishStats stats{version_,        ended.bytes(),    clock.elapsed_ms(),
                     ended.wire_ms(), ended.pause_ms(), std::ssize(fleet_.serving())};
  start_pulls();
  return stats;
}

void WeightPublisher::note_fenced(const PublicationAttempt& attempt,
                                  const Publication& publication) {
  for (size_t i = 0; i < attempt.plan().engines.size(); ++i) {
    const std::string& why = publication.failure(static_cast<int>(i));
    if (why.empty()) continue;
    const std::string& who = attempt.plan().engines[i]->member().id;
    if (!publication.is_committed()) {
      get_logger("coordinator")->info("version {} on {}: {}", version_, who, why);
      continue;
    }
    is_left_behind_[static_cast<size_t>(attempt.plan().numbers[i])] = true;
    const std::string text = fmt::format("version {} goes on without {}: {}", version_, who, why);
    get_logger("coordinator")->warn("{}", text);
    store_.record_event({unix_ms(), Severity::kWarning, who, "engine_fenced", text});
  }
}

void WeightPublisher::note_outcome(int engine, bool has_committed) {
  const auto place = static_cast<size_t>(engine);
  if (has_committed) {
    pace_.committed(engine);
    if (is_left_behind_[place]) note_caught_up(engine, version_);
  } else if (fleet_.is_fenced(engine)) {
    pace_.failed(engine, SteadyClock::now());
  } else {
    return;
  }
  has_failed_to_pull_[place] = false;
}

void WeightPublisher::note_caught_up(int engine, int64_t version) {
  is_left_behind_[static_cast<size_t>(engine)] = false;
  const std::string& who = engines_[static_cast<size_t>(engine)]->member().id;
  const std::string text = fmt::format("{} serves version {} again", who, version);
  get_logger("coordinator")->info("{}", text);
  store_.record_event({unix_ms(), Severity::kInfo, who, "engine_caught_up", text});
}

// Engines that were left behind take the committed version from one that has it, while the job goes
// on.
void WeightPublisher::start_pulls() {
  if (!options_.can_pull) return;
  for (const int e : fleet_.behind()) {
    if (!fleet_.is_fenced(e)) continue;  // came back with another rank of its engine
    if (!pace_.may_try(e, SteadyClock::now())) continue;
    if (has_failed_to_pull_[static_cast<size_t>(e)]) {
      has_failed_to_pull_[static_cast<size_t>(e)] = false;
      fleet_.readmit(e);
      continue;
    }
    // One at a time: an engine has one link to a peer.
    std::vector<int> busy;
    for (const Pull& pull : pulls_) busy.push_back(pull.peer);
    const auto peer = fleet_.next_peer(e, busy);
    if (!peer) continue;
    start_pull(e, *peer);
  }
  post_standings();
}

void WeightPublisher::start_pull(int engine, int peer) {
  fleet_.pull_began(engine);
  met_[static_cast<size_t>(engine)] = false;
  PublicationAttempt::Plan plan = make_plan({engine}, fleet_.version());
  plan.peer = engines_[static_cast<size_t>(peer)];
  plan.meetings[0]->group_name = fmt::format("{}-pull-{}-{}", job_, engine, meetings_);
  begin_transfer(engine, plan.version, plan.peer->member().id);
  get_logger("coordinator")
      ->info("{} pulls version {} from {}", plan.engines[0]->member().id, plan.version,
             plan.peer->member().id);
  pulls_.push_back(
      {engine, peer, plan.version,
       std::async(std::launch::async, [this, plan = std::move(plan)] { return pull(plan); })});
}

WeightPublisher::Pulled WeightPublisher::pull(const PublicationAttempt::Plan& plan) const {
  RolloutClient& engine = *plan.engines[0];
  const auto warn = [&](const std::string& why) {
    if (is_ending_) return;
    get_logger("coordinator")->warn("{} did not catch up: {}", engine.member().id, why);
  };
  Pulled failure = Pulled::kNoAnswer;
  try {
    // It may have committed, and only its answer was lost.
    if (engine.status(plan.timeout).served_version == plan.version) return Pulled::kCommitted;
    failure = Pulled::kFailed;
    PublicationAttempt attempt(plan);
    Publication publication(1, 1);
    attempt.run(publication);
    if (publication.state(0) == EngineState::kCommitted) return Pulled::kCommitted;
    warn(publication.failure(0));  // before calls that are still out have ended
  } catch (const std::exception& error) {
    warn(error.what());
  }
  return failure;
}

void WeightPublisher::collect_pulls() {
  for (Pull& pull : pulls_) {
    if (pull.outcome.wait_for(std::chrono::seconds(0)) != std::future_status::ready) continue;
    const Pulled outcome = pull.outcome.get();
    const bool has_committed = outcome == Pulled::kCommitted;
    fleet_.pull_ended(pull.engine, pull.version, has_committed);
    transfers_[static_cast<size_t>(pull.engine)].reset();
    has_failed_to_pull_[static_cast<size_t>(pull.engine)] = outcome == Pulled::kFailed;
    if (!has_committed) {
      pace_.failed(pull.engine, SteadyClock::now());
      continue;
    }
    note_caught_up(pull.engine, pull.version);
  }
  const auto ended = std::erase_if(pulls_, [](const Pull& pull) { return !pull.outcome.valid(); });
  if (ended > 0) post_standings();
}

std::vector<int> WeightPublisher::serving() {
  collect_pulls();
  return fleet_.serving();
}

PublishStats WeightPublisher::publish(int64_t step, int64_t retries) {
  for (int64_t attempt = 0;; ++attempt) {
    try {
      return try_publish(step, attempt > 0);
    } catch (const Error& error) {
      store_.record_event(
          {unix_ms(), Severity::kError, "coordinator", "publication_failed", error.what()});
      if (attempt >= retries || dynamic_cast<const Disagreement*>(&error) != nullptr) throw;
      get_logger("coordinator")
          ->warn("publication {} failed, trying again: {}", version_, error.what());
    }
  }
}

}  // namespace nibble
