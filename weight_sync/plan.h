#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "weight_sync/bucket_plan.h"
#include "weight_sync/layout.h"
#include "weight_sync/manifest.h"

namespace nibble {

/// A slice of an edge and where its bytes are in the whole tensor.
struct PlannedSlice {
  Slice slice;
  int64_t byte_begin = 0;
  int64_t byte_end = 0;
  int64_t bytes() const { return byte_end - byte_begin; }
};

/// What one sender sends to the receiver, in this order: by tensor, then by row.
struct Edge {
  int sender = 0;  ///< rank in the senders' layout
  std::vector<PlannedSlice> slices;
  int64_t bytes = 0;
};

/// How one receiver's weights travel: a pure function of PlanInputs, computed by every side.
struct SyncPlan {
  std::vector<Edge> edges;  ///< by sender; senders with nothing to send have none
  int64_t bytes = 0;        ///< on the wire, all edges
  TransferSizes sizes;
  Digest manifest_digest;
  Digest digest;  ///< of the edges and of all inputs

  const Edge* edge_of(int sender) const;
};

struct PlanInputs {
  const Manifest& manifest;
  const Layout& senders;
  std::span<const Slice> receiver;
  int64_t epoch = 0;
  std::span<const std::string> membership;  ///< the senders' names by rank, then the receiver's
  TransferSizes sizes = {};
};

/// Every destination byte is sent exactly once. Where several senders hold a row, the one with the
/// fewest bytes so far sends it, so that loads even out. Throws Error{kInvalidArgument} naming
/// tensor and rows if a slice lies outside its tensor, if the receiver's slices overlap, or if no
/// sender holds a row.
SyncPlan make_plan(const PlanInputs& inputs);

/// One sentence about the first row of `destination` that `written` does not cover exactly once,
/// or about a written row outside it; nothing if there is none. `written` may be in any order.
std::optional<std::string> coverage_problem(const Manifest& manifest,
                                            std::span<const Slice> written,
                                            std::span<const Slice> destination);

}  // namespace nibble
