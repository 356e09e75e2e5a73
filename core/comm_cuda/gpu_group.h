#pragma once

#include <memory>

#include "core/comm/process_group.h"

namespace nibble {

/// What carries GPU memory between processes.
enum class GpuWire {
  kNccl,
  kGloo,  ///< through host memory: works everywhere, slower
};

/// Joins a group whose buffers are in GPU memory; otherwise as join_gloo_group().
std::unique_ptr<ProcessGroup> join_gpu_group(GpuWire wire, const Rendezvous& rendezvous, int rank,
                                             int world);

}  // namespace nibble
