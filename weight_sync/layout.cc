#include "weight_sync/layout.h"

namespace nibble {
namespace {

using RowsOf = RowShard (&)(const ParameterTable&, int64_t parameter, const Mesh&, int rank);

// A draft model is small and guesses on one rank: the first has it, of senders and of engines.
RowShard draft_rows(const ParameterSpec& parameter, int rank) {
  return {0, rank == 0 ? parameter.rows : 0};
}

std::vector<Slice> slices_by(const Manifest& manifest, const ParameterTable& table,
                             const Mesh& mesh, int rank, RowsOf rows_of) {
  std::vector<Slice> slices;
  for (int64_t t = 0; t < manifest.size(); ++t) {
    const int64_t parameter = manifest.at(t).parameter;
    const RowShard rows = table.at(parameter).is_draft ? draft_rows(table.at(parameter), rank)
                                                       : rows_of(table, parameter, mesh, rank);
    if (rows.rows() > 0) slices.push_back({t, rows.begin, rows.end});
  }
  return slices;
}

}  // namespace

std::vector<Slice> replica_slices(const Manifest& manifest) {
  std::vector<Slice> slices;
  for (int64_t t = 0; t < manifest.size(); ++t) slices.push_back({t, 0, manifest.at(t).rows});
  return slices;
}

std::vector<Slice> owned_slices(const Manifest& manifest, const ParameterTable& table,
                                const Mesh& mesh, int rank) {
  return slices_by(manifest, table, mesh, rank, owned_rows);
}

Layout trainer_layout(const Manifest& manifest, const ParameterTable& table, const Mesh& mesh) {
  Layout layout;
  for (int rank = 0; rank < mesh.world; ++rank) {
    layout.ranks.push_back(owned_slices(manifest, table, mesh, rank));
  }
  return layout;
}

std::vector<Slice> engine_slices(const Manifest& manifest, const ParameterTable& table,
                                 const Mesh& mesh, int rank) {
  return slices_by(manifest, table, mesh, rank, used_rows);
}

Layout engine_layout(const Manifest& manifest, const ParameterTable& table, const Mesh& mesh) {
  Layout layout;
  for (int rank = 0; rank < mesh.world; ++rank) {
    layout.ranks.push_back(engine_slices(manifest, table, mesh, rank));
  }
  return layout;
}

ParameterTable held_table(const ParameterTable& table, const Manifest& manifest,
                          std::span<const Slice> slices) {
  ParameterTable held = table;
  for (ParameterSpec& parameter : held.parameters) parameter.rows = 0;
  for (const Slice& slice : slices) {
    held.parameters[static_cast<size_t>(manifest.at(slice.tensor).parameter)].rows = slice.rows();
  }
  return held;
}

int64_t slices_bytes(const Manifest& manifest, std::span<const Slice> slices) {
  int64_t bytes = 0;
  for (const Slice& slice : slices) bytes += slice.rows() * manifest.at(slice.tensor).row_bytes();
  return bytes;
}

}  // namespace nibble
