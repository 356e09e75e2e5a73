#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/comm_cuda/gpu_group.h"
#include "trainer/token_records.h"
#include "trainer/trainer.h"
#include "weight_sync/packed_store.h"

namespace grpc {
class Service;
}

namespace nibble {

struct TrainerServiceOptions {
  std::string job;
  int rank = 0;
  Mesh mesh;
  Mesh engine;  ///< ranks of one rollout engine; engines' numbers count them all
  TrainerConfig trainer;
  std::string job_config;               ///< YAML of the whole job, kept in checkpoints
  std::optional<RecordSource> records;  ///< of supervised training; empty: rollouts
  const ops::Backend* gpu = nullptr;    ///< a CUDA backend, borrowed; null: the CPU
  GpuWire gpu_wire = GpuWire::kNccl;    ///< what carries GPU memory
  PackedStore* store = nullptr;  ///< of the engine in this process, borrowed; null: there is none
  std::chrono::milliseconds fetch_timeout{60'000};  ///< for samples from one engine
  bool changes_by_layer = false;  ///< figures of what a step changed, also for each layer
};

/// A trainer rank's gRPC face (nibble.v1.Trainer): converts, calls, converts. The trainer lives on
/// one thread of its own. Thread-safe.
class TrainerService {
 public:
  explicit TrainerService(TrainerServiceOptions options);
  ~TrainerService();
  grpc::Service& service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
