#pragma once

#include <memory>
#include <string>

#include "coordinator/engine_board.h"
#include "coordinator/membership.h"

namespace grpc {
class Service;
}

namespace nibble {

/// The coordinator's gRPC face (nibble.v1.Coordinator): who joins, leases, and how the job stands.
/// Borrows membership and board, which must outlive it. Thread-safe.
class CoordinatorService {
 public:
  /// `id`: told to whoever asks for the job's status, so that it can be told from another that
  /// serves at the same address later. `config_yaml` is handed to every worker.
  CoordinatorService(Membership& membership, const EngineBoard& board, std::string id,
                     std::string config_yaml);
  ~CoordinatorService();
  grpc::Service& service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
