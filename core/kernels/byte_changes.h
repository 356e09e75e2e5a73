#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

/// Changed bytes of an array are listed block by block (the last may be shorter), each as its place
/// in the block (16 bits, little-endian) and its XOR (8 bits), places rising. A fixed width lets
/// every block be listed and applied by itself.
constexpr int64_t kChangeBlockBytes = int64_t{1} << 16;
constexpr int64_t kChangeEntryBytes = 3;
constexpr int64_t num_change_blocks(int64_t bytes) {
  return (bytes + kChangeBlockBytes - 1) / kChangeBlockBytes;
}

/// Two versions of one array: `bytes` is even, both are aligned to two bytes.
struct ByteChangeJob {
  const std::byte* base = nullptr;
  const std::byte* next = nullptr;
  int64_t bytes = 0;
};

/// An array that holds the base.
struct ByteTarget {
  std::byte* data = nullptr;
  int64_t bytes = 0;
};

/// The changed bytes of each block.
void count_byte_changes(const ByteChangeJob& job, std::span<uint32_t> counts,
                        const Parallel& parallel);
/// Writes what count_byte_changes() counted to `list`, sum(counts) entries.
void list_byte_changes(const ByteChangeJob& job, std::span<const uint32_t> counts, std::byte* list,
                       const Parallel& parallel);
/// Applies a list. False if an entry names a place outside its block; the target is then undefined.
/// Reads any entries.
[[nodiscard]] bool apply_byte_changes(const ByteTarget& target, std::span<const uint32_t> counts,
                                      const std::byte* list);

}  // namespace nibble::kernels
