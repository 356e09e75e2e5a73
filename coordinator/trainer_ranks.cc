#include "coordinator/trainer_ranks.h"

#include <utility>

#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/base/parallel_calls.h"

namespace nibble {
namespace {

// Calls `body` for every client at once.
template <typename Body>
void call_each(const std::vector<std::unique_ptr<TrainerClient>>& clients, const Body& body) {
  std::vector<std::function<void()>> calls;
  calls.reserve(clients.size());
  for (const auto& client : clients) {
    calls.emplace_back([&] { body(*client); });
  }
  run_parallel(calls);
}

// What `body` returns for every client, called at once.
template <typename Body>
auto call_all(const std::vector<std::unique_ptr<TrainerClient>>& clients, const Body& body) {
  std::vector<decltype(body(*clients[0]))> answers(clients.size());
  std::vector<std::function<void()>> calls;
  for (size_t i = 0; i < clients.size(); ++i) {
    calls.emplace_back([&, i] { answers[i] = body(*clients[i]); });
  }
  run_parallel(calls);
  return answers;
}

}  // namespace

TrainerRanks::TrainerRanks(const std::vector<Member>& members,
                           std::chrono::milliseconds start_timeout)
    : start_timeout_(start_timeout) {
  NIBBLE_CHECK(!members.empty(), "a job without trainers");
  for (const Member& member : members) trainers_.push_back(std::make_unique<TrainerClient>(member));
}

int64_t TrainerRanks::start() {
  const Member& host = trainers_[0]->member();
  const MeetingPoint at{host.host, host.rendezvous_port, "trainers", start_timeout_};
  const auto records = call_all(
      trainers_, [&](TrainerClient& trainer) { return trainer.start(at, start_timeout_); });
  for (size_t i = 1; i < records.size(); ++i) {
    if (records[i] == records[0]) continue;
    fail(ErrorCode::kFailedPrecondition,
         "{} has {} records, {} has {}: data.train must be the same file for all",
         trainers_[0]->member().id, records[0], trainers_[i]->member().id, records[i]);
  }
  return records[0];
}

CheckpointStart TrainerRanks::load(const std::string& checkpoint) {
  const auto starts = call_all(
      trainers_, [&](TrainerClient& trainer) { return trainer.load(checkpoint, start_timeout_); });
  for (size_t i = 1; i < starts.size(); ++i) {
    if (starts[i].step == starts[0].step) continue;
    fail(
        ErrorCode::kFailedPrecondition,
        "{} goes on after step {}, {} after step {}: the checkpoint must be the same files for all",
        trainers_[0]->member().id, starts[0].step, trainers_[i]->member().id, starts[i].step);
  }
  return starts[0];
}

CheckpointStart TrainerRanks::load_first_whole(
    const std::vector<std::filesystem::path>& checkpoints) {
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    try {
      return load(checkpoints[i].string());
    } catch (const Error& error) {
      const bool is_damage = error.code() == ErrorCode::kDataLoss ||
                             error.code() == ErrorCode::kInvalidArgument ||
                             error.code() == ErrorCode::kNotFound;
      if (!is_damage || i + 1 == checkpoints.size()) throw;
      get_logger("run")->warn("{}; the run goes on from '{}' instead", error.what(),
                              checkpoints[i + 1].string());
    }
  }
  return {};
}

TrainResult TrainerRanks::train(int64_t step, const std::vector<GroupSource>& groups,
                                std::chrono::milliseconds timeout) {
  auto results = call_all(
      trainers_, [&](TrainerClient& trainer) { return trainer.train(step, groups, timeout); });
  for (size_t i = 1; i < results.size(); ++i) {
    if (!results[0].guard || !results[i].guard) continue;
    results[0].guard->add(results[i].guard->suspects);
  }
  return std::move(results[0]);
}

std::map<std::string, double> TrainerRanks::figures(
    const std::function<std::map<std::string, double>(TrainerClient&)>& body) {
  return call_all(trainers_, body)[0];
}

RecordsLoss TrainerRanks::evaluate_records(int64_t step, std::chrono::milliseconds timeout) {
  return call_all(trainers_, [&](TrainerClient& trainer) {
    return trainer.evaluate_records(step, timeout);
  })[0];
}

void TrainerRanks::snapshot(const std::filesystem::path& directory, int64_t step, int64_t version,
                            const std::string& rollout_state) {
  call_each(trainers_, [&](TrainerClient& trainer) {
    trainer.snapshot(directory.string(), step, version, rollout_state, start_timeout_);
  });
}

void TrainerRanks::write_snapshot(int64_t step) {
  call_each(trainers_,
            [&](TrainerClient& trainer) { trainer.write_snapshot(step, start_timeout_); });
}

void TrainerRanks::finish_snapshot(int64_t step, bool publish) {
  call_each(trainers_, [&](TrainerClient& trainer) {
    trainer.finish_snapshot(step, publish, start_timeout_);
  });
}

void TrainerRanks::give_up() {
  for (auto& trainer : trainers_) trainer->give_up();
}

std::vector<TrainerClient*> TrainerRanks::clients() const {
  std::vector<TrainerClient*> clients;
  for (const auto& trainer : trainers_) clients.push_back(trainer.get());
  return clients;
}

}  // namespace nibble
