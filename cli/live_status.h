#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/coordinator_client.h"
#include "coordinator/worker_client.h"

namespace nibble {

enum class CoordinatorState {
  kRunning,
  kNotAnswering,  ///< something takes connections there, but no answer comes
  kNotRunning,
};

/// What one worker says of its engine; without `status`: why it said nothing.
struct EngineAnswer {
  std::optional<EngineStatus> status;
  std::string error;
};

/// A version on its way to one engine.
struct EdgeInFlight {
  int64_t version = 0;
  std::optional<int64_t> from_version;           ///< what the engine serves meanwhile; 0: nothing
  std::string source;                            ///< as in TransferView; empty: not known
  std::optional<std::chrono::milliseconds> age;  ///< since the coordinator began it
  std::optional<int64_t> arrived_bytes;          ///< like the next, once the engine expects any
  std::optional<int64_t> expected_bytes;
};

/// What is in flight, from two answers that were given a moment apart; the engine's is the newer.
std::optional<EdgeInFlight> edge_in_flight(const std::optional<TransferView>& transfer,
                                           const EngineAnswer& answer);

/// A job at this moment.
struct LiveStatus {
  CoordinatorState state = CoordinatorState::kNotRunning;
  JobView job;                                       ///< if running, like the next
  std::vector<std::optional<EngineAnswer>> engines;  ///< by worker; none: it is no engine
};

/// Asks the coordinator at `address` and then, all at once, each engine it names. Takes at most
/// twice 2 s, whoever hangs. Who answers there with another id than `id` is not this run's.
LiveStatus ask_live_status(const std::string& address, const std::string& id);

}  // namespace nibble
