#include "weight_sync/bucket_plan.h"

#include <algorithm>

namespace nibble {
namespace {

template <typename PieceSpan>
std::vector<int64_t> bytes_of_each(PieceSpan pieces) {
  std::vector<int64_t> bytes;
  for (const auto& piece : pieces) bytes.push_back(std::ssize(piece));
  return bytes;
}

template <typename PieceSpan>
auto bytes_of(PieceSpan pieces, const Segment& segment) {
  return pieces[static_cast<size_t>(segment.piece)].subspan(static_cast<size_t>(segment.offset),
                                                            static_cast<size_t>(segment.bytes));
}

}  // namespace

std::vector<Bucket> plan_buckets(std::span<const int64_t> piece_bytes, const TransferSizes& sizes) {
  const int64_t bucket_bytes = sizes.bucket_bytes;
  const int64_t direct_bytes = std::min(sizes.direct_bytes, bucket_bytes);
  std::vector<Bucket> buckets;
  const auto count = static_cast<int64_t>(piece_bytes.size());
  for (int64_t piece = 0; piece < count; ++piece) {
    const int64_t bytes = piece_bytes[static_cast<size_t>(piece)];
    if (bytes < direct_bytes) continue;
    for (int64_t offset = 0; offset < bytes; offset += bucket_bytes) {
      const int64_t part = std::min(bucket_bytes, bytes - offset);
      buckets.push_back({{{piece, offset, part}}, part});
    }
  }
  Bucket packed;
  for (int64_t piece = 0; piece < count; ++piece) {
    const int64_t bytes = piece_bytes[static_cast<size_t>(piece)];
    if (bytes >= direct_bytes) continue;
    if (packed.bytes + bytes > bucket_bytes) {
      buckets.push_back(std::move(packed));
      packed = {};
    }
    packed.segments.push_back({piece, 0, bytes});
    packed.bytes += bytes;
  }
  if (!packed.segments.empty()) buckets.push_back(std::move(packed));
  return buckets;
}

std::vector<int64_t> piece_sizes(ConstPieces pieces) { return bytes_of_each(pieces); }
std::vector<int64_t> piece_sizes(Pieces pieces) { return bytes_of_each(pieces); }

std::vector<Bucket> plan_buckets(ConstPieces pieces, const TransferSizes& sizes) {
  return plan_buckets(piece_sizes(pieces), sizes);
}
std::vector<Bucket> plan_buckets(Pieces pieces, const TransferSizes& sizes) {
  return plan_buckets(piece_sizes(pieces), sizes);
}

std::span<const std::byte> segment_bytes(ConstPieces pieces, const Segment& segment) {
  return bytes_of(pieces, segment);
}
std::span<std::byte> segment_bytes(Pieces pieces, const Segment& segment) {
  return bytes_of(pieces, segment);
}

void pack(const Bucket& bucket, ConstPieces pieces, std::span<std::byte> bytes,
          DeviceMemory& memory) {
  std::vector<MemoryCopy> copies;
  for (const Segment& segment : bucket.segments) {
    const auto from = bytes_of(pieces, segment);
    copies.push_back({bytes.data(), from.data(), static_cast<int64_t>(from.size())});
    bytes = bytes.subspan(from.size());
  }
  memory.copy_all(copies);
}

void unpack(const Bucket& bucket, std::span<const std::byte> bytes, Pieces pieces,
            DeviceMemory& memory) {
  std::vector<MemoryCopy> copies;
  for (const Segment& segment : bucket.segments) {
    const auto to = bytes_of(pieces, segment);
    copies.push_back({to.data(), bytes.data(), static_cast<int64_t>(to.size())});
    bytes = bytes.subspan(to.size());
  }
  memory.copy_all(copies);
}

}  // namespace nibble
