#include "coordinator/publication.h"

#include <algorithm>

namespace nibble {

Publication::Publication(int num_engines, int num_senders, const std::vector<bool>& on_trial,
                         int ranks)
    : num_senders_(num_senders), ranks_(ranks) {
  Engine engine;
  engine.reports.resize(static_cast<size_t>(num_senders));
  engine.has_sent.resize(static_cast<size_t>(num_senders));
  engines_.resize(static_cast<size_t>(num_engines), engine);
  const bool has_others = std::find(on_trial.begin(), on_trial.end(), false) != on_trial.end();
  for (size_t e = 0; e < on_trial.size() && has_others; ++e) {
    engines_[e].is_on_trial = on_trial[e];
  }
}

std::vector<PublicationCall> Publication::begin() {
  Calls calls;
  for (int e = 0; e < static_cast<int>(engines_.size()); ++e) {
    calls.push_back({PublicationStep::kPlan, e});
  }
  return calls;
}

std::vector<PublicationCall> Publication::take(const PublicationReply& reply) {
  Calls calls;
  if (reply.to.step == PublicationStep::kRecord) {
    recorded(reply, calls);
    return calls;
  }
  const int e = reply.to.engine;
  Engine& engine = engines_[static_cast<size_t>(e)];
  if (phase_ == Phase::kMoving && engine.state == EngineState::kBusy) {
    if (!reply.error.empty()) {
      if (reply.to.step != PublicationStep::kAbort) fence(e, reply.error, calls);
    } else {
      advance(e, reply, calls);
    }
    decide_if_possible(calls);
  } else if (phase_ == Phase::kCommitting && engine.state == EngineState::kPrepared &&
             reply.to.step == PublicationStep::kCommit) {
    engine.state = reply.error.empty() ? EngineState::kCommitted : EngineState::kFenced;
    engine.failure = reply.error;
    finish_if_possible();
  }
  return calls;
}

// The engine's next call, if this reply is the one that was awaited.
void Publication::advance(int e, const PublicationReply& reply, Calls& calls) {
  Engine& engine = engines_[static_cast<size_t>(e)];
  const PublicationStep step = reply.to.step;
  if (engine.step == PublicationStep::kReceive) {
    if (step == PublicationStep::kReceive) engine.has_received = true;
    if (step == PublicationStep::kSend) {
      const auto sender = static_cast<size_t>(reply.to.sender);
      engine.has_sent[sender] = true;
      engine.reports[sender] = reply.report;
    }
    const bool all_sent =
        std::find(engine.has_sent.begin(), engine.has_sent.end(), false) == engine.has_sent.end();
    if (!engine.has_received || !all_sent) return;
    engine.step = PublicationStep::kPrepare;
    calls.push_back({PublicationStep::kPrepare, e});
    return;
  }
  if (step != engine.step) return;
  switch (step) {
    case PublicationStep::kPlan:
      engine.step = PublicationStep::kReserve;
      calls.push_back({PublicationStep::kReserve, e});
      break;
    case PublicationStep::kReserve:
      engine.step = PublicationStep::kReceive;
      calls.push_back({PublicationStep::kReceive, e});
      for (int s = 0; s < num_senders_; ++s) calls.push_back({PublicationStep::kSend, e, s});
      break;
    case PublicationStep::kPrepare:
      engine.state = EngineState::kPrepared;
      break;
    default:
      break;
  }
}

// With all ranks of its engine: one alone serves nothing.
void Publication::fence(int e, const std::string& why, Calls& calls) {
  fence_one(e, why, calls);
  const int first = e - e % ranks_;
  for (int sibling = first; sibling < first + ranks_; ++sibling) {
    if (engines_[static_cast<size_t>(sibling)].state == EngineState::kFenced) continue;
    fence_one(sibling, "another rank of its engine failed: " + why, calls);
  }
}

void Publication::fence_one(int e, const std::string& why, Calls& calls) {
  Engine& engine = engines_[static_cast<size_t>(e)];
  engine.state = EngineState::kFenced;
  engine.failure = why;
  calls.push_back({PublicationStep::kAbort, e});
}

void Publication::decide_if_possible(Calls& calls) {
  if (phase_ != Phase::kMoving) return;
  members_.clear();
  int have_a_say = 0, prepared = 0;
  for (size_t e = 0; e < engines_.size(); ++e) {
    const Engine& engine = engines_[e];
    if (engine.state == EngineState::kBusy) return;
    const bool is_prepared = engine.state == EngineState::kPrepared;
    if (is_prepared) members_.push_back(static_cast<int>(e));
    have_a_say += engine.is_on_trial ? 0 : 1;
    prepared += is_prepared && !engine.is_on_trial ? 1 : 0;
  }
  is_committed_ = prepared > 0 && 2 * prepared >= have_a_say;
  phase_ = Phase::kRecording;
  calls.push_back({PublicationStep::kRecord, 0, 0, is_committed_});
}

void Publication::recorded(const PublicationReply& reply, Calls& calls) {
  if (phase_ != Phase::kRecording || reply.to.commits != is_committed_) return;
  if (!reply.error.empty()) is_committed_ = false;  // no decision means abort
  phase_ = Phase::kCommitting;
  for (const int e : members_) {
    if (is_committed_) {
      calls.push_back({PublicationStep::kCommit, e});
    } else {
      fence_one(e, reply.error.empty() ? "too few engines were ready" : reply.error, calls);
    }
  }
  finish_if_possible();
}

void Publication::finish_if_possible() {
  for (const Engine& engine : engines_) {
    if (engine.state == EngineState::kPrepared) return;
  }
  phase_ = Phase::kDone;
}

std::vector<PublicationCall> Publication::expire() {
  Calls calls;
  for (size_t e = 0; e < engines_.size(); ++e) {
    Engine& engine = engines_[e];
    if (phase_ == Phase::kMoving && engine.state == EngineState::kBusy) {
      fence(static_cast<int>(e), "the deadline of the publication has passed", calls);
    } else if (phase_ == Phase::kCommitting && engine.state == EngineState::kPrepared) {
      engine.state = EngineState::kFenced;
      engine.failure = "it did not say that it has committed";
    }
  }
  if (phase_ == Phase::kCommitting) finish_if_possible();
  decide_if_possible(calls);
  return calls;
}

}  // namespace nibble
