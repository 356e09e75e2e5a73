#include "cli/live_status.h"

#include <functional>

#include "core/base/error.h"
#include "core/base/parallel_calls.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kPatience{2'000};  // of each question
// Beyond the patience, so that a coordinator that is stopped is told from one that is gone.
constexpr std::chrono::milliseconds kConnectLimit = 5 * kPatience;

// That an engine does not answer is an answer.
EngineAnswer ask_engine(const Member& member) {
  try {
    return {RolloutClient(member).status(kPatience), ""};
  } catch (const Error& error) {
    return {std::nullopt, error.what()};
  }
}

}  // namespace

std::optional<EdgeInFlight> edge_in_flight(const std::optional<TransferView>& transfer,
                                           const EngineAnswer& answer) {
  EdgeInFlight edge;
  if (transfer) {
    edge.version = transfer->version;
    edge.source = transfer->source;
    edge.age = transfer->age;
  }
  if (!answer.status) return transfer ? std::optional(edge) : std::nullopt;
  const EngineStatus& status = *answer.status;
  edge.from_version = status.served_version;
  if (status.moving_version > edge.version) {  // begun since the coordinator answered
    edge.version = status.moving_version;
    edge.source.clear();
    edge.age.reset();
  }
  if (edge.version <= status.served_version) return std::nullopt;  // arrived, or there was none
  if (status.moving_version == edge.version && status.expected_bytes > 0) {
    edge.arrived_bytes = status.arrived_bytes;
    edge.expected_bytes = status.expected_bytes;
  }
  return edge;
}

LiveStatus ask_live_status(const std::string& address, const std::string& id) {
  LiveStatus live;
  if (address.empty()) return live;
  try {
    live.job = CoordinatorClient(address, {.connect_limit = kConnectLimit}).status(kPatience);
  } catch (const Error& error) {
    // Nobody, or a stranger who took the port: either way the run is over.
    if (error.code() == ErrorCode::kDeadlineExceeded) live.state = CoordinatorState::kNotAnswering;
    return live;
  }
  if (live.job.coordinator_id != id) return {};
  live.state = CoordinatorState::kRunning;
  live.engines.resize(live.job.workers.size());
  std::vector<std::function<void()>> calls;
  for (size_t i = 0; i < live.engines.size(); ++i) {
    if (live.job.workers[i].member.role == WorkerRole::kTrainer) continue;
    calls.emplace_back([&live, i] { live.engines[i] = ask_engine(live.job.workers[i].member); });
  }
  run_parallel(calls);
  return live;
}

}  // namespace nibble
