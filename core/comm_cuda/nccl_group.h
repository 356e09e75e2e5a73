#pragma once

#include <memory>

#include "core/comm/process_group.h"

namespace nibble {

/// Joins a group over NCCL whose buffers are in GPU memory of the calling thread's device.
/// Transfers run on a stream of the group's own, after what the calling thread has enqueued before;
/// a wait() blocks the host. Sends and receives are matched in order, whatever their tag.
///
/// NCCL itself never reports a peer that was stopped or, between GPUs of one machine, killed: every
/// wait polls an event, the communicator's error and a deadline. A group that failed or was aborted
/// has given its communicator up (ncclCommAbort) and is spent; join another. If that takes longer
/// than ten seconds, the process ends, because nothing on the GPU can be trusted to finish.
///
/// Collectives may be captured in a CUDA graph with join(); whoever launches it waits for it with a
/// deadline of their own, and aborts the group when it is missed.
///
/// Returns when all `world` ranks are there and connected with each other; throws
/// Error{kDeadlineExceeded} naming the group if they are not within the timeout,
/// Error{kUnimplemented} in a build without CUDA.
std::unique_ptr<ProcessGroup> join_nccl_group(const Rendezvous& rendezvous, int rank, int world);

/// Lets several processes of one GPU be ranks of a group: NCCL takes each for another host and goes
/// over loopback sockets. Slow, for tests and small jobs. `process` tells them apart. Call before
/// the first group.
void share_gpu_between_nccl_ranks(int process);

}  // namespace nibble
