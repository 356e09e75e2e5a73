#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "core/comm/process_group.h"
#include "core/kernels/weight_kernels.h"
#include "core/ops/backend.h"
#include "core/ops/numerics.h"

namespace nibble {

/// Where the ranks of a run compute.
enum class Place {
  kOwnGpu,     ///< a GPU each, NCCL over what connects them
  kSharedGpu,  ///< all on one, NCCL over loopback: a dry run
  kCpu,        ///< Gloo: a dry run of the steps without a GPU
};

/// Time that ranks wait for one another where one of them may be loading or drawing a model.
constexpr auto kPatience = std::chrono::seconds(120);

struct Seat {
  Place place = Place::kOwnGpu;
  int gpu = 0;      ///< unless they share one
  int process = 0;  ///< tells processes that share a GPU apart
  int port = 0;     ///< of the store that groups meet at
  bool hosts_store = false;
  bool hides_others = false;  ///< the process sees its own GPU only (CUDA_VISIBLE_DEVICES)
};

/// What one process of the benchmark has: device, kernels, groups. Make it first of all.
class Member {
 public:
  explicit Member(const Seat& seat);
  ~Member();

  DeviceKind device() const;
  /// For weights that are sent and received, beside what computes. Each thread has its own.
  std::unique_ptr<kernels::WeightKernels> make_kernels() const;
  /// The same one at every call with the same `numerics`.
  const ops::Backend& backend(Numerics numerics);
  /// A group that moves bytes of the device.
  std::unique_ptr<ProcessGroup> join(const std::string& name, int rank, int world) const;
  /// One that moves bytes of the host.
  std::unique_ptr<ProcessGroup> join_host(const std::string& name, int rank, int world) const;

 private:
  const Seat seat_;
  std::unique_ptr<RendezvousServer> server_;
  std::unique_ptr<const ops::Backend> exact_, fast_;
};

/// Nobody returns before all are here. Collective.
void start_together(ProcessGroup& host);

/// Waits for the device, gives its unused memory back to it, and counts the peak anew.
void release_cached_memory(DeviceKind device);
/// Most bytes of the GPU that arrays and tensors took at a time; 0 on the CPU.
int64_t peak_device_bytes(DeviceKind device);

}  // namespace nibble
