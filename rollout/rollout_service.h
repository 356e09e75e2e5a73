#pragma once

#include <grpcpp/support/status.h>

#include <memory>
#include <mutex>
#include <string>

#include "core/base/task_thread.h"
#include "core/comm/process_group.h"
#include "core/comm_cuda/gpu_group.h"
#include "core/spec/quantization.h"
#include "rollout/rollout_worker.h"
#include "weight_sync/packed_store.h"
#include "weight_sync/receiver.h"

namespace grpc {
class Service;
}

namespace nibble {

struct RolloutServiceOptions {
  std::string job;
  int engine = 0;  ///< number of this engine; of several ranks: of this rank among all engines'
  Mesh trainers;   ///< how the senders share the weights
  RolloutWorkerOptions worker;
  GpuWire gpu_wire = GpuWire::kNccl;  ///< what carries GPU memory
  int external_engines = 0;           ///< that may read the served weights at once
  PackedStore* store = nullptr;       ///< of the trainer rank in this process, borrowed; or null
};

/// A rollout worker's gRPC face (nibble.v1.Rollout): converts, calls, converts. The engine and the
/// reward process live on one thread of their own; weights arrive beside it and are swapped in
/// between two of its jobs. Thread-safe.
class RolloutService {
 public:
  explicit RolloutService(RolloutServiceOptions options);
  ~RolloutService();
  grpc::Service& service();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
