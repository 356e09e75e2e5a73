#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace nibble::kernels::cuda {

/// Bytes to copy within the device, a block's work.
struct CopyTile {
  std::byte* to;
  const std::byte* from;
  int64_t bytes;
};
constexpr int64_t kCopyTileBytes = 64 << 10;  ///< of a tile, at most, to use the whole GPU

/// Copies all tiles, which must not overlap. `tiles`: device memory.
void copy_tiles(const CopyTile* tiles, int64_t count, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
