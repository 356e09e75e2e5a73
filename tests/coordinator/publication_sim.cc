#include "tests/coordinator/publication_sim.h"

#include <algorithm>

#include <fmt/format.h>

#include "core/base/error.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {
namespace {

constexpr int64_t kLongestMs = 1'000'000;

}  // namespace

const char* PublicationSim::name_of(PublicationStep step) {
  constexpr const char* kNames[] = {"plan",    "reserve", "receive", "send",
                                    "prepare", "record",  "commit",  "abort"};
  return kNames[static_cast<size_t>(step)];
}

PublicationSim::PublicationSim(const SimModel& model, uint64_t seed, SimCounts& counts)
    : model_(model), random_(seed), counts_(counts) {
  constexpr double kProbabilities[] = {0.0, 0.01, 0.04, 0.12};
  fault_probability_ = kProbabilities[draw(0, 3)];
  in_place_ = chance(0.5);
  ranks_ = chance(0.3) ? 2 : 1;
  engines_.resize(static_cast<size_t>(ranks_ == 1 ? draw(1, 5) : 2 * draw(1, 3)));
  trainers_.resize(static_cast<size_t>(draw(1, 3)));
  publications_left_ = draw(2, 5);
  for (int e = 0; e < std::ssize(engines_); ++e) start_engine(e);
  for (int t = 0; t < std::ssize(trainers_); ++t) {
    trainers_[static_cast<size_t>(t)].sender =
        std::make_unique<WeightSender>(t, model_.manifest, model_.kernels);
  }
}

bool PublicationSim::chance(double probability) {
  return std::uniform_real_distribution<>(0.0, 1.0)(random_) < probability;
}
int64_t PublicationSim::draw(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_);
}
void PublicationSim::at(int64_t delay, std::function<void()> what) {
  events_.push({now_ + delay, order_++, std::move(what)});
}
void PublicationSim::note(const std::string& what) {
  notes_.push_back(fmt::format("{:6} {}", now_, what));
  if (notes_.size() > 400) notes_.erase(notes_.begin(), notes_.begin() + 200);
}

// From the log alone: no decision means abort, and epochs begin above all that were seen.
void PublicationSim::start_coordinator() {
  ++incarnation_;
  attempts_.clear();
  int64_t epoch = 0;
  for (const Record& record : log_) epoch = std::max(epoch, record.epoch);
  // Pulls and fencing raise the epoch without a record: leave room for those of one life.
  fleet_ = std::make_unique<EngineFleet>(static_cast<int>(engines_.size()), epoch + 1000, in_place_,
                                         ranks_);
  begin_publication();
}

void PublicationSim::begin_publication() {
  const auto members = fleet_->members();
  if (members.empty()) return;
  std::vector<bool> on_trial(members.size());
  for (size_t i = 0; i < members.size(); ++i) on_trial[i] = fleet_->is_on_trial(members[i]);
  auto attempt = std::make_shared<Attempt>(
      Attempt{.machine = Publication(static_cast<int>(members.size()),
                                     static_cast<int>(trainers_.size()), on_trial, ranks_)});
  attempt->engines = members;
  attempt->on_trial = on_trial;
  attempt->version = static_cast<int64_t>(log_.size()) + 1;
  log_.push_back({attempt->version, fleet_->epoch(), false});  // the number never comes back
  note(fmt::format("version {} epoch {} to {} engines", attempt->version, fleet_->epoch(),
                   members.size()));
  begin(attempt);
}

void PublicationSim::begin_pull() {
  const auto behind = fleet_->behind();
  if (behind.empty()) return;
  const int engine = behind[static_cast<size_t>(draw(0, std::ssize(behind) - 1))];
  const auto peer = fleet_->next_peer(engine);
  if (!peer) return;
  auto attempt = std::make_shared<Attempt>(Attempt{.machine = Publication(1, 1)});
  attempt->engines = {engine};
  attempt->peer = *peer;
  attempt->version = fleet_->version();
  note(fmt::format("engine {} pulls version {} from {}", engine, attempt->version, *peer));
  fleet_->pull_began(engine);
  begin(attempt);
}

void PublicationSim::begin(const std::shared_ptr<Attempt>& attempt) {
  attempt->id = ++next_attempt_;
  attempt->began = now_;
  const Layout layout = attempt->peer ? Layout{{replica_slices(model_.manifest)}}
                                      : trainer_layout(model_.manifest, model_.table,
                                                       {static_cast<int>(trainers_.size())});
  for (const int e : attempt->engines) {
    const std::vector<std::string> names = {
        attempt->peer ? fmt::format("peer {}", *attempt->peer) : "trainers",
        fmt::format("engine {}", e)};
    attempt->plans.push_back(make_plan(
        {model_.manifest, layout, replica_slices(model_.manifest), fleet_->epoch(), names}));
    attempt->transactions.push_back(
        {"job", fleet_->epoch(), attempt->version, attempt->plans.back().digest});
    attempt->ways.push_back(std::make_shared<SimWay>());
  }
  attempts_[attempt->id] = attempt;
  dispatch(attempt, attempt->machine.begin());
  const auto expire = [this, attempt](auto&& self, int64_t delay) -> void {
    at(delay, [this, attempt, self] {
      if (!attempts_.contains(attempt->id)) return;
      // Commits have a deadline of their own.
      const int64_t left = attempt->recorded ? *attempt->recorded + kSimDeadlineMs - now_ : 0;
      if (left > 0) return self(self, left);
      dispatch(attempt, attempt->machine.expire());
      if (attempt->machine.is_done()) return ended(attempt);
      self(self, kSimDeadlineMs);
    });
  };
  expire(expire, kSimDeadlineMs);
}

void PublicationSim::dispatch(const std::shared_ptr<Attempt>& attempt,
                              const std::vector<PublicationCall>& calls) {
  for (const PublicationCall& call : calls) {
    if (call.step == PublicationStep::kRecord) {
      at(draw(0, 5), [this, attempt, call] { record(attempt, call); });
    } else {
      request(attempt, call);
    }
  }
}

// A call on its way to whom it is for.
void PublicationSim::request(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call) {
  const int e = attempt->engines[static_cast<size_t>(call.engine)];
  const auto execution = [this, attempt, call] { execute(attempt, call); };
  int64_t delay = draw(0, 40);
  if (chance(fault_probability_)) {
    attempt->touched.insert(e);
    switch (draw(0, 2)) {
      case 0:
        count(SimFault::kLostRequest);
        note(fmt::format("lost: {} to engine {}", name_of(call.step), e));
        return;
      case 1:
        count(SimFault::kLateRequest);
        delay = draw(kSimDeadlineMs, kSimLateMs);
        break;
      default:
        count(SimFault::kDuplicateRequest);
        at(draw(0, kSimLateMs), execution);
    }
  }
  at(delay, execution);
}

void PublicationSim::answer(const std::shared_ptr<Attempt>& attempt,
                            const PublicationReply& reply) {
  const int e = attempt->engines[static_cast<size_t>(reply.to.engine)];
  const auto arrival = [this, attempt, reply, life = incarnation_] {
    if (life == incarnation_) take(attempt, reply);  // else nobody waits for it any more
  };
  if (chance(fault_probability_ / 2)) {
    attempt->touched.insert(e);
    if (chance(0.5)) {
      count(SimFault::kLostReply);
      note(fmt::format("lost: answer to {} of engine {}", name_of(reply.to.step), e));
      return;
    }
    count(SimFault::kDuplicateReply);
    at(draw(0, kSimLateMs), arrival);
  }
  at(draw(0, 40), arrival);
}

void PublicationSim::take(const std::shared_ptr<Attempt>& attempt, const PublicationReply& reply) {
  if (!attempts_.contains(attempt->id)) return;
  dispatch(attempt, attempt->machine.take(reply));
  if (attempt->machine.is_done()) ended(attempt);
}

// The log: written before anybody hears of the decision. A pull's version is there already.
void PublicationSim::record(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call) {
  if (!attempts_.contains(attempt->id)) return;
  const bool writes = !attempt->peer;
  if (writes && chance(fault_probability_ / 4)) {
    return crash_coordinator(SimFault::kCoordinatorCrashBeforeRecord);
  }
  if (writes && chance(fault_probability_ / 4)) {
    count(SimFault::kLogFails);
    attempt->is_touched_elsewhere = true;
    attempt->recorded = now_;
    return take(attempt, {call, "the disk is full", {}});
  }
  if (writes) log_[static_cast<size_t>(attempt->version - 1)].is_committed = call.commits;
  attempt->recorded = now_;
  note(fmt::format("version {}: {}", attempt->version, call.commits ? "committed" : "aborted"));
  if (writes && chance(fault_probability_ / 4)) {
    return crash_coordinator(SimFault::kCoordinatorCrashAfterRecord);
  }
  take(attempt, {call, {}, {}});
}

void PublicationSim::ended(const std::shared_ptr<Attempt>& attempt) {
  attempts_.erase(attempt->id);
  check_ended(*attempt);
  const Publication& machine = attempt->machine;
  if (attempt->peer) {
    const bool has_committed = machine.state(0) == EngineState::kCommitted;
    counts_.pulled += has_committed ? 1 : 0;
    fleet_->pull_ended(attempt->engines[0], attempt->version, has_committed);
    if (!has_committed && chance(0.5)) {
      ++counts_.readmitted;
      note(fmt::format("engine {} is on trial", attempt->engines[0]));
      fleet_->readmit(attempt->engines[0]);
    }
    return;
  }
  ++(machine.is_committed() ? counts_.committed : counts_.aborted);
  is_retry_ = !machine.is_committed();
  fleet_->publication_ended(attempt->version, attempt->engines, machine);
  counts_.fenced += std::ssize(fleet_->behind());
  if (chance(0.7))
    at(draw(0, 20), [this, life = incarnation_] {
      if (life == incarnation_) begin_pull();
    });
  at(draw(0, 400), [this, life = incarnation_] {
    if (life != incarnation_) return;
    maybe_crash_somebody();
    if (life != incarnation_) return;  // it was the coordinator
    if (--publications_left_ > 0) begin_publication();
  });
}

void PublicationSim::maybe_crash_somebody() {
  for (int e = 0; e < std::ssize(engines_); ++e) {
    if (chance(fault_probability_)) at(draw(0, 300), [this, e] { crash_engine(e); });
  }
  for (int t = 0; t < std::ssize(trainers_); ++t) {
    if (chance(fault_probability_ / 4)) at(draw(0, 300), [this, t] { crash_trainer(t); });
  }
  if (chance(fault_probability_ / 2)) crash_coordinator(SimFault::kCoordinatorCrash);
}

void PublicationSim::crash_coordinator(SimFault kind) {
  count(kind);
  note("the coordinator crashes");
  ++incarnation_;
  attempts_.clear();
  at(draw(50, 1500), [this] { start_coordinator(); });
}

// What must hold at every moment.
void PublicationSim::check() {
  for (size_t e = 0; e < engines_.size(); ++e) {
    Engine& engine = engines_[e];
    if (!engine.is_up) continue;
    const ReceiverStatus status = engine.receiver->status();
    const bool serves = status.served_version > 0;
    counts_.poisoned += engine.serving > 0 && !serves ? 1 : 0;
    const bool may_serve_nothing = in_place_ || engine.version == 0;
    if (status.epoch < engine.epoch || (!serves && !may_serve_nothing) ||
        (serves && status.served_version < engine.version)) {
      violation_ = fmt::format("I3: engine {} went from version {} of epoch {} to {} of {}", e,
                               engine.version, engine.epoch, status.served_version, status.epoch);
    }
    engine.epoch = status.epoch;
    if (!serves) {
      engine.serving = 0;
      if (engine.receiver->served().weights != nullptr) {
        violation_ = fmt::format("I1: engine {} serves what is no version", e);
      }
      continue;
    }
    // What is written in place is looked at now and then, not only when it is new.
    constexpr int64_t kLooksEvery = 8;
    const bool is_due = in_place_ && order_ % kLooksEvery == 0;
    if (status.served_version == engine.serving && !is_due) continue;
    engine.serving = status.served_version;
    engine.version = status.served_version;
    if (!log_[static_cast<size_t>(engine.version - 1)].is_committed) {
      violation_ =
          fmt::format("I2: engine {} serves version {}, which is not committed", e, engine.version);
    }
    const ServedWeights served = engine.receiver->served();
    if (content_hashes(model_.manifest, *served.weights, model_.kernels) !=
        model_.hashes(engine.version)) {
      violation_ =
          fmt::format("I1, I4: engine {} serves other bytes as version {}", e, engine.version);
    }
  }
}

void PublicationSim::check_ended(const Attempt& attempt) {
  if (now_ - attempt.began > 2 * kSimDeadlineMs + 20) {
    violation_ = fmt::format("I5: version {} took {} ms", attempt.version, now_ - attempt.began);
  }
  if (attempt.peer) return;
  const std::vector<int>& members = attempt.machine.members();
  for (size_t i = 0; i < members.size(); ++i) {
    const int first = members[i] - members[i] % ranks_;
    if (members[i] == first + static_cast<int>(i) % ranks_) continue;
    violation_ =
        fmt::format("I6: version {} was decided with a part of an engine", attempt.version);
  }
  if (attempt.is_touched_elsewhere) return;
  const auto is_touched = [&](int e) {
    const int first = e - e % ranks_;
    for (int rank = first; rank < first + ranks_; ++rank) {
      if (attempt.touched.contains(rank)) return true;
    }
    return false;
  };
  // Engines on trial have no say, unless there are no others.
  const bool has_others =
      std::find(attempt.on_trial.begin(), attempt.on_trial.end(), false) != attempt.on_trial.end();
  int untouched = 0, have_a_say = 0;
  for (size_t i = 0; i < attempt.engines.size(); ++i) {
    if (has_others && attempt.on_trial[i]) continue;
    ++have_a_say;
    untouched += is_touched(attempt.engines[i]) ? 0 : 1;
  }
  if (2 * untouched < have_a_say || untouched == 0) return;
  if (!attempt.machine.is_committed()) {
    violation_ = fmt::format("I5: version {} was aborted, but {} of {} engines were sound",
                             attempt.version, untouched, have_a_say);
    return;
  }
  for (size_t i = 0; i < attempt.engines.size(); ++i) {
    const int e = attempt.engines[i];
    if (is_touched(e) || attempt.on_trial[i]) continue;
    if (attempt.machine.state(static_cast<int>(i)) != EngineState::kCommitted) {
      violation_ = fmt::format("I5: sound engine {} does not serve version {}", e, attempt.version);
    }
  }
}

std::string PublicationSim::run() {
  start_coordinator();
  const auto drain = [&] {
    while (!events_.empty() && violation_.empty()) {
      const Event event = events_.top();
      events_.pop();
      now_ = event.time;
      if (now_ > kLongestMs) violation_ = "it does not end";
      event.run();
      check();
    }
  };
  drain();
  // The faults are over: everybody catches up within a few publications.
  fault_probability_ = 0.0;
  for (int round = 0; round < 16 && violation_.empty(); ++round) {
    publications_left_ = 1;
    if (round % 3 == 0) begin_publication();
    drain();
    begin_pull();
    drain();
    if (all_serve() && round > 0) break;
  }
  if (violation_.empty() && !all_serve()) {
    violation_ = fmt::format("the end: {} of {} engines serve version {}", fleet_->serving().size(),
                             engines_.size(), fleet_->version());
  }
  if (violation_.empty()) return {};
  std::string story = violation_;
  for (const std::string& line : notes_) story += "\n" + line;
  return story;
}

}  // namespace nibble
