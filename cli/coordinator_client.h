#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "coordinator/membership.h"

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

/// A worker's line to the coordinator.
class CoordinatorClient {
 public:
  explicit CoordinatorClient(std::string address);
  ~CoordinatorClient();
  /// Registers this process. Throws what the coordinator threw, Error{kUnavailable} if there is
  /// none.
  Assignment join(int service_port, int rendezvous_port);
  /// Renews the lease until the coordinator says stop. Throws Error{kUnavailable} when it has not
  /// answered for a whole lease.
  void keep_alive_until_stop(const Assignment& assignment);

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
