#include "core/base/fail.h"
#include "core/comm_cuda/nccl_group.h"

namespace nibble {

std::unique_ptr<ProcessGroup> join_nccl_group(const Rendezvous& /*rendezvous*/, int /*rank*/,
                                              int /*world*/) {
  fail(ErrorCode::kUnimplemented,
       "this nibble was built without CUDA and has no NCCL; set weight_sync.transport: gloo");
}

void share_gpu_between_nccl_ranks(int /*process*/) {}

}  // namespace nibble
