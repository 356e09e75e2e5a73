#include "weight_sync/layout.h"

#include "core/comm/reduce.h"

namespace nibble {

std::vector<Slice> replica_slices(const Manifest& manifest) {
  std::vector<Slice> slices;
  for (int64_t t = 0; t < manifest.size(); ++t) slices.push_back({t, 0, manifest.at(t).rows});
  return slices;
}

Layout row_shard_layout(const Manifest& manifest, int world) {
  Layout layout;
  layout.ranks.resize(static_cast<size_t>(world));
  for (int rank = 0; rank < world; ++rank) {
    for (int64_t t = 0; t < manifest.size(); ++t) {
      const RowShard shard = row_shard(manifest.at(t).rows, rank, world);
      if (shard.rows() == 0) continue;
      layout.ranks[static_cast<size_t>(rank)].push_back({t, shard.begin, shard.end});
    }
  }
  return layout;
}

}  // namespace nibble
