#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "core/models/weights.h"
#include "core/quant/hash.h"
#include "weight_sync/plan.h"

namespace nibble {

/// Hashes of slices whose bytes stay as they are, so that each is taken once.
using SliceHashes = std::map<std::tuple<int64_t, int64_t, int64_t>, quant::ContentHash>;
inline SliceHashes::key_type place_of(const Slice& slice) {
  return {slice.tensor, slice.row_begin, slice.row_end};
}

/// A receiver's rows of the tensors that are the same in every version of its job, and their
/// hashes: weight buffers have views of them. Written by the transaction that brings them, and by
/// none after it is verified; but for hashes, which the one in flight may add.
struct FrozenRows {
  /// Zeros for the frozen parameters of `table`, nothing for the others.
  FrozenRows(const ParameterTable& table, const QuantizationPlan& plan, DeviceKind device);

  std::vector<StoredParameter> parameters;  ///< one a parameter of the table
  SliceHashes hashes;
};

/// Places in `edge` of the slices that travel in a transaction.
std::vector<size_t> travelling_slices(const Manifest& manifest, const Edge& edge,
                                      bool omits_frozen);
/// Of these slices.
int64_t travelling_bytes(const Manifest& manifest, const Edge& edge, bool omits_frozen);

}  // namespace nibble
