#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine_board.h"
#include "coordinator/external_engines.h"
#include "coordinator/membership.h"
#include "core/rpc/channel.h"

namespace nibble {

/// What the coordinator made of a worker.
struct Assignment {
  std::string worker_id;
  WorkerRole role = WorkerRole::kTrainer;
  int index = 0;
  int64_t epoch = 0;
  std::string config_yaml;
  std::chrono::milliseconds lease{0};
};

/// Weights on their way to an engine, as the coordinator tells it.
struct TransferView {
  int64_t version = 0;
  std::string source;  ///< "trainers", or the id of the engine it pulls from
  std::chrono::milliseconds age{0};
};

/// A worker as the coordinator knows it.
struct WorkerView {
  Member member;  ///< without index and rendezvous port
  std::chrono::milliseconds heartbeat_age{0};
  bool is_up = false;
  std::optional<EngineStanding> standing;  ///< none: no engine, or nothing is published to it yet
  std::optional<TransferView> transfer;
};

/// A job as its coordinator knows it.
struct JobView {
  std::string coordinator_id;
  int64_t epoch = 0;    ///< 0: nothing is published yet
  int64_t version = 0;  ///< newest committed; 0: none
  std::chrono::milliseconds lease{0};
  std::vector<WorkerView> workers;
  std::vector<ExternalEngineView> external_engines;  ///< by name
};

/// A line to the coordinator: a worker's, or that of somebody who looks.
class CoordinatorClient {
 public:
  explicit CoordinatorClient(std::string address, const ChannelOptions& options = {});
  ~CoordinatorClient();
  /// Registers this process. Throws what the coordinator threw, Error{kUnavailable} if there is
  /// none.
  Assignment join(int service_port, int rendezvous_port);
  /// Renews the lease until the coordinator says stop. Throws Error{kUnavailable} when it has not
  /// answered for a whole lease.
  void keep_alive_until_stop(const Assignment& assignment);
  /// Throws Error{kUnavailable} if nobody answers, Error{kDeadlineExceeded} after `timeout`.
  JobView status(std::chrono::milliseconds timeout);

 private:
  struct Stub;
  const std::string address_;
  std::unique_ptr<Stub> stub_;
};

/// A free loopback port, held until release(), so that it can be told to peers before it serves.
class PortReservation {
 public:
  PortReservation();
  PortReservation(const PortReservation&) = delete;
  PortReservation& operator=(const PortReservation&) = delete;
  ~PortReservation();
  int port() const { return port_; }
  int release();

 private:
  int fd_ = -1;
  int port_ = 0;
};

}  // namespace nibble
