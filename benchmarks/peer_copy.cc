#include "benchmarks/peer_copy.h"

#include <string>
#include <vector>

#include "benchmarks/figure.h"
#include "core/base/clock.h"
#include "core/cuda/check.h"
#include "core/cuda/device_buffer.h"
#include "core/cuda/stream.h"

namespace nibble {

double measure_peer_copy(int64_t bytes, int to_gpu) {
  constexpr int kRounds = 5;
  cudaDeviceProp properties{};
  NIBBLE_CUDA_CHECK(cudaGetDeviceProperties(&properties, to_gpu));
  int has_peer_access = 0;
  if (to_gpu != 0) NIBBLE_CUDA_CHECK(cudaDeviceCanAccessPeer(&has_peer_access, 0, to_gpu));
  NIBBLE_CUDA_CHECK(cudaSetDevice(to_gpu));
  const DeviceBuffer<std::byte> to(bytes);
  NIBBLE_CUDA_CHECK(cudaSetDevice(0));
  if (has_peer_access != 0 && cudaDeviceEnablePeerAccess(to_gpu, 0) != cudaSuccess) {
    (void)cudaGetLastError();  // an earlier call has enabled it
  }
  const DeviceBuffer<std::byte> from(bytes);
  const CudaStream stream;
  std::vector<double> ms;
  for (int round = 0; round <= kRounds; ++round) {
    const Stopwatch watch;
    NIBBLE_CUDA_CHECK(cudaMemcpyPeerAsync(to.data(), to_gpu, from.data(), 0,
                                          static_cast<size_t>(bytes), stream.get()));
    stream.synchronize();
    if (round > 0) ms.push_back(watch.elapsed_ms());
  }
  Figure("peer_copy")
      .set("gpu", std::string(properties.name))
      .set("peer_access", has_peer_access != 0)
      .set("bytes", bytes)
      .times("copy", ms)
      .number("GB_per_s", static_cast<double>(bytes) / median(ms) / 1e6)
      .print();
  return median(ms);
}

}  // namespace nibble
