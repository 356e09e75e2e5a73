#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/device_memory.h"

namespace nibble {

/// How an edge is cut into transfers.
struct TransferSizes {
  int64_t bucket_bytes = int64_t{8} << 20;  ///< of a transfer, at most; a multiple of 4
  /// Pieces of this size or more go from and into their place; smaller ones are packed, because a
  /// transfer costs more than copying that little twice.
  int64_t direct_bytes = int64_t{128} << 10;
};
/// Between GPUs a copy is cheap and a transfer is not.
constexpr TransferSizes kGpuTransfers = {int64_t{256} << 20, int64_t{64} << 20};

/// Bytes [offset, offset + bytes) of one piece of an edge.
struct Segment {
  int64_t piece = 0;
  int64_t offset = 0;
  int64_t bytes = 0;
};

/// One transfer: a single segment goes from and into its place in memory, several are packed.
struct Bucket {
  std::vector<Segment> segments;
  int64_t bytes = 0;
  bool is_packed() const { return segments.size() > 1; }
};

/// Cuts an edge's pieces into transfers: large pieces first, each alone; then small ones, whole,
/// packed together in order. A segment never splits an element. Pure: both sides of an edge compute
/// the same.
std::vector<Bucket> plan_buckets(std::span<const int64_t> piece_bytes, const TransferSizes& sizes);

using ConstPieces = std::span<const std::span<const std::byte>>;
using Pieces = std::span<const std::span<std::byte>>;
std::vector<int64_t> piece_sizes(ConstPieces pieces);
std::vector<int64_t> piece_sizes(Pieces pieces);
std::vector<Bucket> plan_buckets(ConstPieces pieces, const TransferSizes& sizes);
std::vector<Bucket> plan_buckets(Pieces pieces, const TransferSizes& sizes);

/// The memory of a segment.
std::span<const std::byte> segment_bytes(ConstPieces pieces, const Segment& segment);
std::span<std::byte> segment_bytes(Pieces pieces, const Segment& segment);

/// Copies a bucket's segments to or from `bytes`, which has bucket.bytes; both are in `memory`.
void pack(const Bucket& bucket, ConstPieces pieces, std::span<std::byte> bytes,
          DeviceMemory& memory = device_memory(DeviceKind::kCpu));
void unpack(const Bucket& bucket, std::span<const std::byte> bytes, Pieces pieces,
            DeviceMemory& memory = device_memory(DeviceKind::kCpu));

}  // namespace nibble
