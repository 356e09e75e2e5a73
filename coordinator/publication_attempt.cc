#include "coordinator/publication_attempt.h"

#include <algorithm>
#include <thread>

#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "core/base/parallel_calls.h"

namespace nibble {
namespace {

constexpr auto kAbortTimeout = std::chrono::milliseconds(15'000);

std::string hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

// The first line in which two manifests differ.
std::string first_difference(const std::string& a, const std::string& b) {
  const auto difference = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  const auto line_at = [](const std::string& text, std::string::const_iterator at) {
    const auto position = static_cast<size_t>(at - text.begin());
    const size_t begin = position == 0 ? 0 : text.rfind('\n', position - 1) + 1;
    return text.substr(begin, text.find('\n', position) - begin);
  };
  return fmt::format("'{}' against '{}'", line_at(a, difference.first),
                     line_at(b, difference.second));
}

}  // namespace

std::chrono::milliseconds move_limit(int64_t bytes, int64_t min_bytes_per_s,
                                     std::chrono::milliseconds timeout) {
  constexpr std::chrono::milliseconds kGrace{10'000};  // meeting, hashing, a busy machine
  if (min_bytes_per_s == 0) return timeout;
  const double ms = static_cast<double>(bytes) / static_cast<double>(min_bytes_per_s) * 1000.0;
  if (ms > static_cast<double>(timeout.count())) return timeout;
  return std::min(timeout, kGrace + std::chrono::milliseconds(static_cast<int64_t>(ms)));
}

PublicationAttempt::~PublicationAttempt() = default;  // futures of std::async wait

std::optional<Error> PublicationAttempt::disagreement() const {
  const std::lock_guard lock(mutex_);
  return disagreement_;
}
std::optional<Error> PublicationAttempt::first_error() const {
  const std::lock_guard lock(mutex_);
  return first_error_;
}
int64_t PublicationAttempt::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}
double PublicationAttempt::wire_ms() const {
  const std::lock_guard lock(mutex_);
  return wire_ms_;
}
double PublicationAttempt::pause_ms() const {
  const std::lock_guard lock(mutex_);
  return pause_ms_;
}
bool PublicationAttempt::has_calls_out() const {
  return std::any_of(calls_.begin(), calls_.end(), [](const std::future<void>& call) {
    return call.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
  });
}

std::vector<std::string> PublicationAttempt::membership(int engine) const {
  std::vector<std::string> names;
  if (plan_.peer != nullptr) {
    names.push_back(plan_.peer->member().id);
  } else {
    for (const TrainerClient* trainer : plan_.trainers) names.push_back(trainer->member().id);
  }
  names.push_back(plan_.engines[static_cast<size_t>(engine)]->member().id);
  return names;
}

PublicationId PublicationAttempt::id(int engine) const {
  const std::lock_guard lock(mutex_);
  const auto e = static_cast<size_t>(engine);
  return {plan_.job, plan_.epoch, plan_.version, digests_[e], bases_[e], omits_frozen_[e]};
}

std::chrono::milliseconds PublicationAttempt::limit_of_move(int engine) const {
  const std::lock_guard lock(mutex_);
  return move_limit(planned_bytes_[static_cast<size_t>(engine)], plan_.min_bytes_per_s,
                    plan_.timeout);
}

void PublicationAttempt::run(Publication& publication) {
  digests_.resize(plan_.engines.size());
  planned_bytes_.resize(plan_.engines.size());
  bases_.resize(plan_.engines.size());
  omits_frozen_.resize(plan_.engines.size());
  const auto dispatch = [&](const Calls& calls) {
    for (const PublicationCall& call : calls) {
      if (call.step != PublicationStep::kRecord) {
        start(call, publication);
      } else {
        const std::lock_guard lock(mutex_);
        replies_.push_back({call, {}, {}});  // written below, by this thread
      }
    }
  };
  dispatch(publication.begin());
  Deadline deadline = Deadline::after(plan_.timeout);
  while (!publication.is_done()) {
    auto reply = wait_for_reply(deadline);
    if (!reply) {
      dispatch(publication.expire());
      deadline = Deadline::after(plan_.timeout);
      continue;
    }
    if (reply->to.step == PublicationStep::kRecord) {
      reply = record(reply->to, publication);
      deadline = Deadline::after(plan_.timeout);  // the commits'
    }
    dispatch(publication.take(*reply));
  }
}

PublicationReply PublicationAttempt::record(const PublicationCall& call,
                                            const Publication& publication) {
  PublicationReply reply{call, {}, {}};
  if (!plan_.record) return reply;
  std::vector<int> members;
  for (const int e : publication.members()) {
    members.push_back(plan_.numbers[static_cast<size_t>(e)]);
  }
  try {
    failpoint("coordinator.decide");
    std::string digest;
    {
      const std::lock_guard lock(mutex_);
      // Of an engine that has the version: a fenced one may not have planned.
      const auto first = publication.members().empty() ? 0 : publication.members().front();
      digest = hex(digests_[static_cast<size_t>(first)]);
    }
    plan_.record(call.commits, members, digest);
    failpoint("coordinator.decided");
  } catch (const Error& error) {
    reply.error = error.what();
    const std::lock_guard lock(mutex_);
    if (!first_error_) first_error_ = error;
  }
  return reply;
}

std::optional<PublicationReply> PublicationAttempt::wait_for_reply(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (!replied_.wait_until(lock, deadline.time(), [&] { return !replies_.empty(); })) {
    return std::nullopt;
  }
  PublicationReply reply = std::move(replies_.front());
  replies_.pop_front();
  return reply;
}

void PublicationAttempt::start(const PublicationCall& call, const Publication& publication) {
  calls_.push_back(
      std::async(std::launch::async, [this, call, reports = publication.reports(call.engine)] {
        PublicationReply reply{call, {}, {}};
        try {
          reply = execute(call, reports);
        } catch (const std::exception& error) {
          reply.error = error.what();
          const auto* typed = dynamic_cast<const Error*>(&error);
          const std::lock_guard lock(mutex_);
          if (!first_error_ && call.step != PublicationStep::kAbort) {
            first_error_ = typed != nullptr ? *typed : Error(ErrorCode::kInternal, error.what());
          }
        }
        const std::lock_guard lock(mutex_);
        replies_.push_back(std::move(reply));
        replied_.notify_all();
      }));
}

PublicationReply PublicationAttempt::execute(const PublicationCall& call,
                                             const std::vector<std::string>& reports) {
  PublicationReply reply{call, {}, {}};
  RolloutClient& engine = *plan_.engines[static_cast<size_t>(call.engine)];
  const auto timeout = plan_.timeout;
  switch (call.step) {
    case PublicationStep::kPlan:
      plan_engine(call.engine);
      break;
    case PublicationStep::kReserve:
      engine.reserve(id(call.engine), membership(call.engine), source(), timeout);
      break;
    case PublicationStep::kReceive: {
      const double ms =
          engine.receive_weights(id(call.engine), source(), limit_of_move(call.engine));
      const std::lock_guard lock(mutex_);
      wire_ms_ = std::max(wire_ms_, ms);
      break;
    }
    case PublicationStep::kSend: {
      SendAnswer sent = send(call);
      reply.report = std::move(sent.report);
      const std::lock_guard lock(mutex_);
      bytes_ += sent.bytes;
      break;
    }
    case PublicationStep::kPrepare:
      engine.prepare(id(call.engine), reports, timeout);
      break;
    case PublicationStep::kCommit: {
      const double ms = commit(call.engine);
      const std::lock_guard lock(mutex_);
      pause_ms_ = std::max(pause_ms_, ms);
      break;
    }
    case PublicationStep::kAbort:
      // Not planned yet: nothing to abort.
      if (id(call.engine).plan_digest.empty()) break;
      engine.abort(id(call.engine), "the publication goes on without this engine", kAbortTimeout);
      break;
    case PublicationStep::kRecord:
      break;
  }
  return reply;
}

// The version is decided: an answer that was lost, or an error on the way, is asked for again.
double PublicationAttempt::commit(int engine) {
  constexpr int kTries = 4;
  constexpr std::chrono::milliseconds kPause{100};
  const Deadline deadline = Deadline::after(plan_.timeout);
  for (int attempt = 1;; ++attempt) {
    try {
      return plan_.engines[static_cast<size_t>(engine)]->commit(id(engine), deadline.remaining());
    } catch (const Error& error) {
      if (attempt == kTries || error.code() != ErrorCode::kUnavailable || deadline.expired()) throw;
      std::this_thread::sleep_for(kPause);
    }
  }
}

SendAnswer PublicationAttempt::send(const PublicationCall& call) {
  const PublicationId publication = id(call.engine);
  const auto names = membership(call.engine);
  const auto limit = limit_of_move(call.engine);
  if (plan_.peer != nullptr) return plan_.peer->send_weights(publication, names, limit);
  return plan_.trainers[static_cast<size_t>(call.sender)]->send_weights(
      publication, plan_.numbers[static_cast<size_t>(call.engine)], names, plan_.committed_version,
      limit);
}

// One process group per engine, hosted by the engine: a dead engine holds no other.
void PublicationAttempt::meet(int e) {
  const auto& meeting = plan_.meetings[static_cast<size_t>(e)];
  if (!meeting) return;
  RolloutClient& engine = *plan_.engines[static_cast<size_t>(e)];
  std::vector<std::function<void()>> calls;
  if (plan_.peer != nullptr) {
    calls.emplace_back([&] { engine.join_peer(*meeting, false); });
    calls.emplace_back([&] { plan_.peer->join_peer(*meeting, true); });
  } else {
    calls.emplace_back(
        [&] { engine.join_trainers(*meeting, static_cast<int>(plan_.trainers.size())); });
    for (TrainerClient* trainer : plan_.trainers) {
      calls.emplace_back(
          [&, trainer] { trainer->join_engine(plan_.numbers[static_cast<size_t>(e)], *meeting); });
    }
  }
  run_parallel(calls);
}

void PublicationAttempt::plan_engine(int e) {
  meet(e);
  RolloutClient& engine = *plan_.engines[static_cast<size_t>(e)];
  const auto names = membership(e);
  const PlanAnswer wanted = engine.plan(plan_.epoch, names, source(), plan_.timeout);
  const auto compare = [&](const std::string& sender, const PlanAnswer& planned) {
    if (planned.digest == wanted.digest) return;
    const Error error(
        ErrorCode::kInvalidArgument,
        fmt::format("{} and {} disagree about the weights: {}; give every machine the "
                    "same checkpoints",
                    sender, engine.member().id,
                    first_difference(planned.manifest_text, wanted.manifest_text)));
    const std::lock_guard lock(mutex_);
    if (!disagreement_) disagreement_ = error;
    throw error;
  };
  if (plan_.peer != nullptr) {
    compare(plan_.peer->member().id, plan_.peer->plan(plan_.epoch, names, source(), plan_.timeout));
  } else {
    for (TrainerClient* trainer : plan_.trainers) {
      compare(
          trainer->member().id,
          trainer->plan(plan_.epoch, plan_.numbers[static_cast<size_t>(e)], names, plan_.timeout));
    }
  }
  const std::lock_guard lock(mutex_);
  digests_[static_cast<size_t>(e)] = wanted.digest;
  planned_bytes_[static_cast<size_t>(e)] = wanted.bytes;
  // Nothing is known of what an engine that was restarted serves: it is asked.
  const bool has_base =
      plan_.committed_version > 0 && wanted.served_version == plan_.committed_version;
  omits_frozen_[static_cast<size_t>(e)] = wanted.has_frozen;
  bases_[static_cast<size_t>(e)] = plan_.sends_changes && has_base ? plan_.committed_version : 0;
}

}  // namespace nibble
