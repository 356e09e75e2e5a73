// What engines and trainers do in a simulation: carry out calls, move bytes, crash.
#include <fmt/format.h>

#include "core/base/error.h"
#include "tests/coordinator/publication_sim.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {

void PublicationSim::start_engine(int e) {
  Engine& engine = engines_[static_cast<size_t>(e)];
  const int64_t next = engine.incarnation + 1;
  engine = {};
  engine.incarnation = next;
  ReceiverOptions options;
  if (in_place_) {
    options.release_engine = [this, e] { engines_[static_cast<size_t>(e)].held.reset(); };
  }
  engine.receiver =
      std::make_unique<WeightReceiver>("job", model_.table, model_.quantization, model_.manifest,
                                       model_.kernels, std::move(options));
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
      at(kSimDeadlineMs, [this, attempt, call] { finish_receive(attempt, call.engine, false); });
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
      auto before = engine.receiver->served().weights;
      engine.receiver->commit(transaction);
      if (in_place_) before = engine.receiver->served().weights;  // until it is told to let go
      if (before && chance(fault_probability_)) {
        count(SimFault::kShadowHeld);
        engine.held = before;
        at(draw(0, kSimLateMs),
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

}  // namespace nibble
