#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/spec/mesh.h"
#include "core/spec/parameters.h"
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

/// What trainer ranks own (owned_rows), `table` being the manifest's. Every row is somebody's.
Layout trainer_layout(const Manifest& manifest, const ParameterTable& table, const Mesh& mesh);
std::vector<Slice> owned_slices(const Manifest& manifest, const ParameterTable& table,
                                const Mesh& mesh, int rank);

/// What one rank of an engine of several (tensor x expert) multiplies with (used_rows): its rows of
/// attention and dense MLPs, its experts whole; embedding, norms, router and lm_head whole. At most
/// one slice a tensor, whole rows: groups lie inside a row, so codes and scales are never parted.
std::vector<Slice> engine_slices(const Manifest& manifest, const ParameterTable& table,
                                 const Mesh& mesh, int rank);
/// The same of all ranks: every row is somebody's, some rows are several ranks'.
Layout engine_layout(const Manifest& manifest, const ParameterTable& table, const Mesh& mesh);

/// `table` with the rows of `slices` alone (one a tensor, the same for all of a parameter's): what
/// a rank that holds them has in memory. Parameters that it does not hold have no rows.
ParameterTable held_table(const ParameterTable& table, const Manifest& manifest,
                          std::span<const Slice> slices);

/// Of the rows of `slices`, as they are stored and sent.
int64_t slices_bytes(const Manifest& manifest, std::span<const Slice> slices);

}  // namespace nibble
