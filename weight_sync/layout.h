#pragma once

#include <cstdint>
#include <vector>

#include "weight_sync/manifest.h"

namespace nibble {

/// Whole rows [row_begin, row_end) of one stored tensor.
struct Slice {
  int64_t tensor = 0;  ///< index in the Manifest
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t rows() const { return row_end - row_begin; }
  friend bool operator==(const Slice&, const Slice&) = default;
};

/// What each rank of one side holds. Slices of one rank need not be sorted.
struct Layout {
  std::vector<std::vector<Slice>> ranks;
  int world() const { return static_cast<int>(ranks.size()); }
};

/// Everything: a rollout worker that serves the model alone.
std::vector<Slice> replica_slices(const Manifest& manifest);

/// The trainer's row shards: of every parameter, rank r owns row_shard(rows, r, world).
Layout row_shard_layout(const Manifest& manifest, int world);

}  // namespace nibble
