#include "coordinator/weight_publisher.h"

#include <algorithm>
#include <functional>
#include <mutex>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/base/parallel_calls.h"

namespace nibble {
namespace {

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

// What one try collects from several threads.
struct WeightPublisher::Attempt {
  std::mutex mutex;
  double wire_ms = 0.0;  // guarded by mutex
  std::chrono::milliseconds timeout{0};
};

WeightPublisher::WeightPublisher(std::string job, int64_t epoch,
                                 std::vector<TrainerClient*> trainers,
                                 std::vector<RolloutClient*> engines, RunStore& store,
                                 std::chrono::milliseconds timeout)
    : job_(std::move(job)),
      epoch_(epoch),
      trainers_(std::move(trainers)),
      engines_(std::move(engines)),
      store_(store),
      timeout_(timeout) {
  // Version numbers never come back, also after a crash between prepare and decision.
  for (const VersionRecord& record : store_.undecided_versions()) {
    VersionRecord aborted = record;
    aborted.decision = Decision::kAborted;
    store_.record_version(aborted);
  }
  for (const VersionRecord& record : store_.versions()) {
    version_ = std::max(version_, record.version);
  }
}

std::vector<std::string> WeightPublisher::membership(size_t engine) const {
  std::vector<std::string> names;
  for (const TrainerClient* trainer : trainers_) names.push_back(trainer->member().id);
  names.push_back(engines_[engine]->member().id);
  return names;
}

// One process group per engine, hosted by the engine: a dead engine holds no other.
void WeightPublisher::meet() {
  ++meetings_;
  std::vector<std::function<void()>> calls;
  for (size_t e = 0; e < engines_.size(); ++e) {
    const Member& host = engines_[e]->member();
    const MeetingPoint at{host.host, host.rendezvous_port,
                          fmt::format("{}-sync-{}-{}", job_, e, meetings_), timeout_};
    calls.emplace_back(
        [this, e, at] { engines_[e]->join_trainers(at, static_cast<int>(trainers_.size())); });
    for (TrainerClient* trainer : trainers_) {
      calls.emplace_back([trainer, e, at] { trainer->join_engine(static_cast<int>(e), at); });
    }
  }
  run_parallel(calls);
  met_ = true;
}

void WeightPublisher::plan_all(std::vector<PublicationId>& publications, PublishStats& stats) {
  for (size_t e = 0; e < engines_.size(); ++e) {
    const PlanAnswer wanted = engines_[e]->plan(epoch_, membership(e), timeout_);
    for (TrainerClient* trainer : trainers_) {
      const PlanAnswer planned = trainer->plan(epoch_, membership(e), timeout_);
      if (planned.digest == wanted.digest) continue;
      fail(ErrorCode::kFailedPrecondition, "{} and {} disagree about the weights: {}",
           trainer->member().id, engines_[e]->member().id,
           first_difference(planned.manifest_text, wanted.manifest_text));
    }
    publications.push_back({job_, epoch_, version_, wanted.digest});
    stats.bytes += wanted.bytes;
  }
}

void WeightPublisher::move_and_prepare(size_t engine, const PublicationId& publication,
                                       Attempt& attempt) {
  RolloutClient& receiver = *engines_[engine];
  const auto names = membership(engine);
  receiver.reserve(publication, names, attempt.timeout);
  std::vector<std::string> reports(trainers_.size());
  std::vector<std::function<void()>> calls;
  double wire_ms = 0.0;
  calls.emplace_back([&] { wire_ms = receiver.receive_weights(publication, attempt.timeout); });
  for (size_t t = 0; t < trainers_.size(); ++t) {
    calls.emplace_back([&, t] {
      reports[t] = trainers_[t]
                       ->send_weights(publication, static_cast<int>(engine), names, attempt.timeout)
                       .report;
    });
  }
  run_parallel(calls);
  receiver.prepare(publication, reports, attempt.timeout);
  const std::lock_guard lock(attempt.mutex);
  attempt.wire_ms = std::max(attempt.wire_ms, wire_ms);
}

PublishStats WeightPublisher::try_publish(int64_t step) {
  const Stopwatch clock;
  if (!met_) meet();
  PublishStats stats;
  stats.version = ++version_;
  std::vector<PublicationId> publications;
  plan_all(publications, stats);
  VersionRecord record{version_, epoch_, step, Decision::kPrepared, {}, "", unix_ms()};
  for (const RolloutClient* engine : engines_) record.members.push_back(engine->member().id);
  record.digest = hex(publications.front().plan_digest);
  Attempt attempt;
  attempt.timeout = timeout_;
  try {
    std::vector<std::function<void()>> calls;
    for (size_t e = 0; e < engines_.size(); ++e) {
      calls.emplace_back([&, e] { move_and_prepare(e, publications[e], attempt); });
    }
    run_parallel(calls);
    store_.record_version(record);
    record.decision = Decision::kCommitted;
    store_.record_version(record);  // durable from here on: every engine must follow
  } catch (const Error& error) {
    met_ = false;  // a failed transfer spends its process groups
    for (size_t e = 0; e < engines_.size(); ++e) {
      try {
        engines_[e]->abort(publications[e], error.what(), std::chrono::milliseconds(15'000));
      } catch (const Error& second) {
        get_logger("coordinator")
            ->warn("{} did not abort: {}", engines_[e]->member().id, second.what());
      }
    }
    record.decision = Decision::kAborted;
    store_.record_version(record);
    throw;
  }
  stats.wire_ms = attempt.wire_ms;
  for (size_t e = 0; e < engines_.size(); ++e) {
    stats.pause_ms = std::max(stats.pause_ms, engines_[e]->commit(publications[e], timeout_));
  }
  stats.sync_ms = clock.elapsed_ms();
  return stats;
}

PublishStats WeightPublisher::publish(int64_t step, int64_t retries) {
  for (int64_t attempt = 0;; ++attempt) {
    try {
      return try_publish(step);
    } catch (const Error& error) {
      store_.record_event(
          {unix_ms(), Severity::kError, "coordinator", "publication_failed", error.what()});
      if (attempt >= retries) throw;
      get_logger("coordinator")
          ->warn("publication {} failed, trying again: {}", version_, error.what());
    }
  }
}

}  // namespace nibble
