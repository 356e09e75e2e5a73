#include "core/kernels_cuda/copy_tiles.h"

#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ void copy_as(const CopyTile& tile) {
  auto* to = reinterpret_cast<T*>(tile.to);
  const auto* from = reinterpret_cast<const T*>(tile.from);
  const int64_t count = tile.bytes / static_cast<int64_t>(sizeof(T));
  for (int64_t i = threadIdx.x; i < count; i += kThreads) to[i] = from[i];
}

__global__ void __launch_bounds__(kThreads) copy_kernel(const CopyTile* tiles) {
  const CopyTile tile = tiles[blockIdx.x];
  const auto bits = reinterpret_cast<uintptr_t>(tile.to) | reinterpret_cast<uintptr_t>(tile.from) |
                    static_cast<uintptr_t>(tile.bytes);
  if (bits % sizeof(uint4) == 0) {
    copy_as<uint4>(tile);
  } else if (bits % sizeof(uint16_t) == 0) {
    copy_as<uint16_t>(tile);
  } else {
    copy_as<std::byte>(tile);
  }
}

}  // namespace

void copy_tiles(const CopyTile* tiles, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  copy_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(tiles);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
