#pragma once

#include <memory>
#include <string>

#include "coordinator/engine_board.h"
#include "coordinator/external_engines.h"
#include "coordinator/membership.h"

namespace grpc {
class Service;
}

namespace nibble {

/// What a job tells of itself.
struct JobIdentity {
  /// Told to whoever asks for the job's status, so that it can be told from another that serves at
  /// the same address later.
  std::string id;
  std::string name;
  std::string config_yaml;  ///< handed to every worker
};

/// The coordinator's gRPC face (nibble.v1.Coordinator): who joins, leases, and how the job stands.
/// Borrows membership, external engines and board, which must outlive it. Thread-safe.
class CoordinatorService {
 public:
  CoordinatorService(Membership& membership, ExternalEngines& external, const EngineBoard& board,
                     JobIdentity identity);
  ~CoordinatorService();
  grpc::Service& service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
