#pragma once

#include <cstdint>
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

}  // namespace nibble
