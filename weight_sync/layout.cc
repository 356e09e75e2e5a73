#include "weight_sync/layout.h"

namespace nibble {

std::vector<Slice> replica_slices(const Manifest& manifest) {
  std::vector<Slice> slices;
  for (int64_t t = 0; t < manifest.size(); ++t) slices.push_back({t, 0, manifest.at(t).rows});
  return slices;
}

std::vector<Slice> owned_slices(const Manifest& manifest, const ParameterTable& table,
                                const Mesh& mesh, int rank) {
  std::vector<Slice> slices;
  for (int64_t t = 0; t < manifest.size(); ++t) {
    const RowShard rows = owned_rows(table, manifest.at(t).parameter, mesh, rank);
    if (rows.rows() > 0) slices.push_back({t, rows.begin, rows.end});
  }
  return slices;
}

Layout trainer_layout(const Manifest& manifest, const ParameterTable& table, const Mesh& mesh) {
  Layout layout;
  for (int rank = 0; rank < mesh.world; ++rank) {
    layout.ranks.push_back(owned_slices(manifest, table, mesh, rank));
  }
  return layout;
}

}  // namespace nibble
