#pragma once

#include <memory>
#include <string>

#include "coordinator/membership.h"

namespace grpc {
class Service;
}

namespace nibble {

/// The coordinator's gRPC face (nibble.v1.Coordinator): who joins, and leases. Borrows the
/// membership, which must outlive it. Thread-safe.
class CoordinatorService {
 public:
  /// `config_yaml` is handed to every worker.
  CoordinatorService(Membership& membership, std::string config_yaml);
  ~CoordinatorService();
  grpc::Service& service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
