#include "tests/coordinator/publication_sim.h"

#include <fmt/format.h>

#include "core/base/error.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {
namespace {

constexpr int64_t kDeadlineMs = 1000;  // of moving and preparing, and again of committing
constexpr int64_t kLateMs = 5000;
constexpr int64_t kLongestMs = 1'000'000;

const char* name_of(PublicationStep step) {
  constexpr const char* kNames[] = {"plan",    "reserve", "receive", "send",
                                    "prepare", "record",  "commit",  "abort"};
  return kNames[static_cast<size_t>(step)];
}

}  // namespace

SimModel::SimModel() {
  config.architecture = Architecture::kQwen3Moe;
  config.vocab = 6;
  config.hidden = 32;
  config.intermediate = 32;
  config.num_layers = 1;
  config.num_heads = 1;
  config.num_kv_heads = 1;
  config.head_dim = 32;
  config.qk_norm = true;
  config.moe = {2, 1, 32, true};
  config.layer_is_moe = {true};
  table = model_parameters(config);
  quantization = plan_quantization(table, QuantTargets::kLinear, 4, 32);
  manifest = make_manifest(table, quantization);
}

const std::shared_ptr<const std::vector<StoredParameter>>& SimModel::version(
    int64_t version) const {
  auto& made = versions_[version];  // a map's places stay
  if (made) return made;
  std::mt19937 random(static_cast<uint32_t>(version));
  auto parameters = std::make_shared<std::vector<StoredParameter>>();
  // Version 1 is random; each other one changes one element in 16 of the one before.
  const auto change = [&](auto& values) {
    using Value = std::decay_t<decltype(values[0])>;
    for (auto& value : values) {
      if (version == 1) value = static_cast<Value>(random());
      if (random() % 16 == 0) value = static_cast<Value>(value ^ (1u << random() % 16));
    }
  };
  for (int64_t p = 0; p < table.size(); ++p) {
    StoredParameter out =
        version > 1 ? (*this->version(version - 1))[static_cast<size_t>(p)].to(DeviceKind::kCpu)
                    : StoredParameter::make(table.at(p), table.at(p).rows, quantization,
                                            quantization.quantized[static_cast<size_t>(p)],
                                            DeviceKind::kCpu);
    change(out.words);
    change(out.scale);
    change(out.bf16);
    parameters->push_back(std::move(out));
  }
  made = std::move(parameters);
  return made;
}

const std::vector<quant::ContentHash>& SimModel::hashes(int64_t version) const {
  auto& known = hashes_[version];
  if (known.empty()) {
    const auto whole = owned_slices(manifest, table, {1}, 0);
    known =
        content_hashes(manifest, shard_tensors(manifest, *this->version(version), whole), kernels);
  }
  return known;
}

PublicationSim::PublicationSim(const SimModel& model, uint64_t seed, SimCounts& counts)
    : model_(model), random_(seed), counts_(counts) {
  constexpr double kProbabilities[] = {0.0, 0.01, 0.04, 0.12};
  fault_probability_ = kProbabilities[draw(0, 3)];
  engines_.resize(static_cast<size_t>(draw(1, 5)));
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

void PublicationSim::start_engine(int e) {
  Engine& engine = engines_[static_cast<size_t>(e)];
  const int64_t next = engine.incarnation + 1;
  engine = {};
  engine.incarnation = next;
  engine.receiver = std::make_unique<WeightReceiver>("job", model_.table, model_.quantization,
                                                     model_.manifest, model_.kernels);
}

// From the log alone: no decision means abort, and epochs begin above all that were seen.
void PublicationSim::start_coordinator() {
  ++incarnation_;
  attempts_.clear();
  int64_t epoch = 0;
  for (const Record& record : log_) epoch = std::max(epoch, record.epoch);
  // Pulls and fencing raise the epoch without a record: leave room for those of one life.
  fleet_ = std::make_unique<EngineFleet>(static_cast<int>(engines_.size()), epoch + 1000);
  begin_publication();
}

void PublicationSim::begin_publication() {
  const auto members = fleet_->members();
  if (members.empty()) return;
  auto attempt = std::make_shared<Attempt>(
      Attempt{.machine = Publication(static_cast<int>(members.size()),
                                     static_cast<int>(trainers_.size()))});
  attempt->engines = members;
  attempt->version = static_cast<int64_t>(log_.size()) + 1;
  log_.push_back({attempt->version, fleet_->epoch(), false});  // the number never comes back
  note(fmt::format("version {} epoch {} to {} engines", attempt->version, fleet_->epoch(),
                   members.size()));
  begin(attempt);
}

void PublicationSim::begin_pull() {
  const auto behind = fleet_->behind();
  if (behind.empty()) return;
  const auto peer = fleet_->next_peer();
  if (!peer) return;
  const int engine = behind[static_cast<size_t>(draw(0, std::ssize(behind) - 1))];
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
      const int64_t left = attempt->recorded ? *attempt->recorded + kDeadlineMs - now_ : 0;
      if (left > 0) return self(self, left);
      dispatch(attempt, attempt->machine.expire());
      if (attempt->machine.is_done()) return ended(attempt);
      self(self, kDeadlineMs);
    });
  };
  expire(expire, kDeadlineMs);
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
        delay = draw(kDeadlineMs, kLateMs);
        break;
      default:
        count(SimFault::kDuplicateRequest);
        at(draw(0, kLateMs), execution);
    }
  }
  at(delay, execution);
}

void PublicationSim::execute(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call) {
  const int e = attempt->engines[static_cast<size_t>(call.engine)];
  try {
    if (call.step == PublicationStep::kSend) {
      send(attempt, call);
      return;
    }
    if (!engines_[static_cast<size_t>(e)].is_up) {
      attempt->touched.insert(e);
      fail(ErrorCode::kUnavailable, "engine {} is down", e);
    }
    execute_on_engine(attempt, call);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kResourceExhausted) attempt->touched.insert(e);  // kShadowHeld
    const bool lacks_base = std::string(error.what()).find("does not hold") != std::string::npos;
    if (lacks_base) attempt->is_touched_elsewhere = true;  // a trainer that was restarted
    note(fmt::format("{} of version {} on engine {}: {}", name_of(call.step), attempt->version, e,
                     error.what()));
    answer(attempt, {call, error.what(), {}});
  }
}

void PublicationSim::execute_on_engine(const std::shared_ptr<Attempt>& attempt,
                                       const PublicationCall& call) {
  const auto place = static_cast<size_t>(call.engine);
  Engine& engine = engines_[static_cast<size_t>(attempt->engines[place])];
  const Transaction transaction = attempt->transactions[place];
  switch (call.step) {
    case PublicationStep::kReserve:
      engine.receiver->reserve(transaction, attempt->plans[place]);
      break;
    case PublicationStep::kReceive:
      engine.receiving[attempt->id] = {call, {}, {}};
      finish_receive(attempt, call.engine, true);
      at(kDeadlineMs, [this, attempt, call] { finish_receive(attempt, call.engine, false); });
      return;
    case PublicationStep::kPrepare: {
      std::vector<SenderReport> reports;
      for (const std::string& number : attempt->machine.reports(call.engine)) {
        reports.push_back(reports_[std::stoul(number)]);
      }
      engine.receiver->verify(transaction, reports);
      engine.receiver->prepare(transaction);
      break;
    }
    case PublicationStep::kCommit: {
      const auto before = engine.receiver->served().weights;
      engine.receiver->commit(transaction);
      if (before && chance(fault_probability_)) {
        count(SimFault::kShadowHeld);
        engine.held = before;
        at(draw(0, kLateMs),
           [this, e = attempt->engines[place]] { engines_[static_cast<size_t>(e)].held.reset(); });
      }
      break;
    }
    case PublicationStep::kAbort:
      finish_receive(attempt, call.engine, false);
      engine.receiver->abort(transaction, Deadline::after(std::chrono::seconds(1)));
      break;
    default:  // kPlan: they have met; an engine that has the committed version may get a delta
      if (!attempt->peer && fleet_->version() > 0 && !is_retry_ && chance(0.5) &&
          engine.receiver->served().version == fleet_->version()) {
        attempt->transactions[place].base_version = fleet_->version();
        ++counts_.deltas;
      }
      break;
  }
  answer(attempt, {call, {}, {}});
}

// A sender's move; the engine it sends to may have been waiting for just this.
void PublicationSim::send(const std::shared_ptr<Attempt>& attempt, const PublicationCall& call) {
  const auto place = static_cast<size_t>(call.engine);
  const int e = attempt->engines[place];
  auto damage = SimDamage::kNone;
  if (chance(fault_probability_ / 2)) {
    damage = static_cast<SimDamage>(draw(1, 3));
    count(damage == SimDamage::kFlippedBit  ? SimFault::kFlippedBit
          : damage == SimDamage::kTruncated ? SimFault::kTruncated
                                            : SimFault::kSwappedBytes);
    attempt->touched.insert(e);
  }
  SimTransport transport(*attempt->ways[place], call.sender, damage, random_());
  const auto move = [&](WeightSender& sender) {
    return sender.move(attempt->transactions[place], attempt->plans[place], transport,
                       Deadline::after(std::chrono::seconds(1)));
  };
  SenderReport report;
  if (attempt->peer) {
    const Engine& peer = engines_[static_cast<size_t>(*attempt->peer)];
    if (!peer.is_up) fail(ErrorCode::kUnavailable, "engine {} is down", *attempt->peer);
    const ServedWeights served = peer.receiver->served();
    if (served.version != attempt->version) {
      fail(ErrorCode::kFailedPrecondition, "the peer serves version {}", served.version);
    }
    WeightSender sender(0, model_.manifest, model_.kernels);
    sender.publish(served.version, replica_tensors(model_.manifest, *served.weights),
                   served.weights);
    report = move(sender);
  } else {
    Trainer& trainer = trainers_[static_cast<size_t>(call.sender)];
    if (!trainer.is_up) {
      attempt->is_touched_elsewhere = true;
      fail(ErrorCode::kUnavailable, "trainer {} is down", call.sender);
    }
    if (trainer.published < attempt->version) {
      const auto whole = model_.version(attempt->version);
      auto tensors = shard_tensors(model_.manifest, *whole,
                                   owned_slices(model_.manifest, model_.table, {1}, 0));
      trainer.sender->publish(attempt->version, std::move(tensors), whole);
      trainer.sender->retire_before(fleet_->version());
      trainer.published = attempt->version;
    }
    report = move(*trainer.sender);
  }
  attempt->ways[place]->done.insert(call.sender);
  reports_.push_back(std::move(report));
  answer(attempt, {call, {}, std::to_string(reports_.size() - 1)});
  finish_receive(attempt, call.engine, true);
}

// receive() as it ends: with all bytes, or (not `in_time`) by its deadline or an abort.
void PublicationSim::finish_receive(const std::shared_ptr<Attempt>& attempt, int place,
                                    bool in_time) {
  const auto p = static_cast<size_t>(place);
  Engine& engine = engines_[static_cast<size_t>(attempt->engines[p])];
  const auto found = engine.receiving.find(attempt->id);
  if (!engine.is_up || found == engine.receiving.end()) return;
  SimWay& way = *attempt->ways[p];
  const auto num_senders = static_cast<int>(attempt->plans[p].edges.size());
  if (in_time && std::ssize(way.done) < num_senders) return;
  PublicationReply reply = found->second;
  engine.receiving.erase(found);
  if (!in_time) way.sent.clear();
  try {
    SimTransport transport(way, -1);
    engine.receiver->receive(attempt->transactions[p], transport,
                             Deadline::after(std::chrono::seconds(1)));
  } catch (const Error& error) {
    reply.error = error.what();
  }
  answer(attempt, reply);
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
    at(draw(0, kLateMs), arrival);
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

void PublicationSim::crash_engine(int e) {
  Engine& engine = engines_[static_cast<size_t>(e)];
  if (!engine.is_up) return;
  count(SimFault::kEngineCrash);
  note(fmt::format("engine {} crashes", e));
  engine.is_up = false;
  engine.receiving.clear();
  for (const auto& [id, attempt] : attempts_) {
    attempt->touched.insert(e);
    if (attempt->peer == e) attempt->is_touched_elsewhere = true;
  }
  at(draw(50, 1500), [this, e] { start_engine(e); });
}

void PublicationSim::crash_trainer(int t) {
  Trainer& trainer = trainers_[static_cast<size_t>(t)];
  if (!trainer.is_up) return;
  count(SimFault::kTrainerCrash);
  note(fmt::format("trainer {} crashes", t));
  trainer.is_up = false;
  for (const auto& [id, attempt] : attempts_) attempt->is_touched_elsewhere = true;
  at(draw(50, 1500), [this, t] {
    trainers_[static_cast<size_t>(t)] = {
        std::make_unique<WeightSender>(t, model_.manifest, model_.kernels), true, 0};
  });
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
    if (status.epoch < engine.epoch || status.served_version < engine.version) {
      violation_ = fmt::format("I3: engine {} went from version {} of epoch {} to {} of {}", e,
                               engine.version, engine.epoch, status.served_version, status.epoch);
    }
    engine.epoch = status.epoch;
    if (status.served_version == engine.version) continue;
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
  if (now_ - attempt.began > 2 * kDeadlineMs + 20) {
    violation_ = fmt::format("I5: version {} took {} ms", attempt.version, now_ - attempt.began);
  }
  if (attempt.is_touched_elsewhere || attempt.peer) return;
  int untouched = 0;
  for (const int e : attempt.engines) untouched += attempt.touched.contains(e) ? 0 : 1;
  if (2 * untouched < std::ssize(attempt.engines) || untouched == 0) return;
  if (!attempt.machine.is_committed()) {
    violation_ = fmt::format("I5: version {} was aborted, but {} of {} engines were sound",
                             attempt.version, untouched, attempt.engines.size());
    return;
  }
  for (size_t i = 0; i < attempt.engines.size(); ++i) {
    const int e = attempt.engines[i];
    if (attempt.touched.contains(e)) continue;
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
    if (std::ssize(fleet_->serving()) == std::ssize(engines_) && round > 0) break;
  }
  if (violation_.empty() && std::ssize(fleet_->serving()) != std::ssize(engines_)) {
    violation_ = fmt::format("the end: {} of {} engines serve version {}", fleet_->serving().size(),
                             engines_.size(), fleet_->version());
  }
  if (violation_.empty()) return {};
  std::string story = violation_;
  for (const std::string& line : notes_) story += "\n" + line;
  return story;
}

}  // namespace nibble
