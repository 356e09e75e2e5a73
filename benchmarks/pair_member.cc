#include "benchmarks/pair_member.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <vector>

#include "core/base/env.h"
#include "core/comm_cuda/nccl_group.h"
#include "core/cuda/check.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/torch_parallel.h"

namespace nibble {

Member::Member(const Seat& seat) : seat_(seat) {
  set_env("NCCL_NVLS_ENABLE", "0");  // multicast: not between these processes
  if (seat.place == Place::kSharedGpu) share_gpu_between_nccl_ranks(seat.process);
  if (seat.place != Place::kCpu) {
    const int gpu = seat.place == Place::kSharedGpu ? 0 : seat.gpu;
    if (seat.hides_others) setenv("CUDA_VISIBLE_DEVICES", std::to_string(gpu).c_str(), 1);
    ops::use_cuda_device(seat.hides_others ? 0 : gpu);
  }
  if (seat.hosts_store) server_ = std::make_unique<RendezvousServer>(seat.port);
}

Member::~Member() = default;

DeviceKind Member::device() const {
  return seat_.place == Place::kCpu ? DeviceKind::kCpu : DeviceKind::kCuda;
}

std::unique_ptr<kernels::WeightKernels> Member::make_kernels() const {
  if (device() == DeviceKind::kCuda) return ops::make_cuda_weight_kernels();
  return std::make_unique<kernels::CpuWeightKernels>(ops::torch_parallel());
}

const ops::Backend& Member::backend(Numerics numerics) {
  if (device() == DeviceKind::kCpu) return ops::cpu_backend();
  auto& backend = numerics == Numerics::kExact ? exact_ : fast_;
  if (backend == nullptr) backend = ops::make_cuda_backend(numerics);
  return *backend;
}

std::unique_ptr<ProcessGroup> Member::join(const std::string& name, int rank, int world) const {
  const Rendezvous rendezvous{"127.0.0.1", seat_.port, name, kPatience};
  return device() == DeviceKind::kCuda ? join_nccl_group(rendezvous, rank, world)
                                       : join_gloo_group(rendezvous, rank, world);
}

std::unique_ptr<ProcessGroup> Member::join_host(const std::string& name, int rank,
                                                int world) const {
  return join_gloo_group({"127.0.0.1", seat_.port, name + " on hosts", kPatience}, rank, world);
}

void start_together(ProcessGroup& host) {
  const std::byte local{};
  std::vector<std::byte> all(static_cast<size_t>(host.world()));
  host.all_gather(std::span(&local, 1), all)->wait();
}

void release_cached_memory(DeviceKind device) {
  if (device == DeviceKind::kCpu) return;
  int index = 0;
  NIBBLE_CUDA_CHECK(cudaGetDevice(&index));
  NIBBLE_CUDA_CHECK(cudaDeviceSynchronize());
  c10::cuda::CUDACachingAllocator::emptyCache();
  c10::cuda::CUDACachingAllocator::resetPeakStats(static_cast<c10::DeviceIndex>(index));
}

int64_t peak_device_bytes(DeviceKind device) {
  if (device == DeviceKind::kCpu) return 0;
  int index = 0;
  NIBBLE_CUDA_CHECK(cudaGetDevice(&index));
  return c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(index))
      .allocated_bytes[0]
      .peak;
}

}  // namespace nibble
