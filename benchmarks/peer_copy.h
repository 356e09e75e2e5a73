#pragma once

#include <cstdint>

namespace nibble {

/// Copies `bytes` from GPU 0 to GPU `to_gpu` (0: within it) by cudaMemcpyPeerAsync, prints the rate
/// and returns the median milliseconds: what a transfer can reach at best. The process must see
/// both GPUs; it uses them without torch.
double measure_peer_copy(int64_t bytes, int to_gpu);

}  // namespace nibble
