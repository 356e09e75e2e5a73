#include "core/comm_cuda/gpu_group.h"

#include "core/comm/staged_group.h"
#include "core/comm_cuda/nccl_group.h"

namespace nibble {

std::unique_ptr<ProcessGroup> join_gpu_group(GpuWire wire, const Rendezvous& rendezvous, int rank,
                                             int world) {
  if (wire == GpuWire::kNccl) return join_nccl_group(rendezvous, rank, world);
  return staged_group(join_gloo_group(rendezvous, rank, world));
}

}  // namespace nibble
