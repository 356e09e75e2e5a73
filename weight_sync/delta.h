#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "weight_sync/manifest.h"
#include "weight_sync/plan.h"

namespace nibble {

/// What changed between two versions of one slice: a list of (distance from the change before,
/// XOR), as variable-length integers of seven bits a byte. Words are counted in 4-bit codes, the
/// distance and the code's XOR in one integer; 16-bit values take one integer each for distance and
/// XOR. Nothing if the list would not be shorter than `next`. Both are host memory of the same
/// size.
std::optional<std::vector<std::byte>> encode_delta(StoredKind kind, std::span<const std::byte> base,
                                                   std::span<const std::byte> next);

/// Applies a list to `target`, which holds the base. Reads any bytes: throws Error{kDataLoss} for a
/// list that does not end where `delta` ends or names a place outside; `target` is then undefined.
void apply_delta(StoredKind kind, std::span<const std::byte> delta, std::span<std::byte> target);

/// An edge as it travels in a delta: `header`, whose size the plan tells, then `payload`, whose
/// size the header tells: for each slice, in order, the shortest of its list, its XOR compressed
/// with Zstandard, and its bytes.
struct EncodedEdge {
  std::vector<std::byte> header;
  std::vector<std::byte> payload;
};
EncodedEdge encode_edge(const Manifest& manifest, const Edge& edge,
                        std::span<const std::span<const std::byte>> base,
                        std::span<const std::span<const std::byte>> next);

/// Bytes of the header of an edge.
int64_t delta_header_bytes(const Edge& edge);
/// Bytes of the payload that a header announces. Reads any bytes: throws Error{kDataLoss} if they
/// are not a header of this edge. The header has a hash of its own, because a transfer of another
/// size than was sent ends a process that uses Gloo.
int64_t delta_payload_bytes(const Edge& edge, std::span<const std::byte> header);
/// Writes an edge's slices to `target`: where the header says so from `base`, by lists. `target`
/// may be the base. Reads any bytes: throws Error{kDataLoss}.
void decode_edge(const Manifest& manifest, const Edge& edge, std::span<const std::byte> header,
                 std::span<const std::byte> payload,
                 std::span<const std::span<const std::byte>> base,
                 std::span<const std::span<std::byte>> target);

}  // namespace nibble
