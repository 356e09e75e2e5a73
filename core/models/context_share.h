#pragma once

#include <cstdint>
#include <vector>

#include "core/models/packing.h"
#include "core/ops/rank_ops.h"

namespace nibble {

/// What one of several ranks computes of a packed batch whose tokens they share (context
/// parallelism): every rank takes as many rows, and gathers the keys and values of all.
///
/// The rows are put in an order first that gives each rank a piece near the beginning of every long
/// sequence and the one as far from its end, so that attention, whose cost grows along it, is even
/// too (but for a few rows where pieces are not).
struct ContextShare {
  PackedBatch batch;  ///< its tokens; keys are rows in that order, targets those that it predicts
  ops::RowPart rows;  ///< that it takes, in that order
  std::vector<int64_t> order;  ///< [T]: row of the whole batch at each place
  std::vector<int64_t> place;  ///< [T]: place of each of its rows
  /// Places of the whole batch's targets among all ranks' own, of which each has as many: the rest
  /// are filled up with targets that nobody asked for.
  std::vector<int64_t> target_place;
};

/// The share of `rank` of `ranks`. The batch has at least one token.
ContextShare share_context(const PackedBatch& whole, int rank, int ranks);

}  // namespace nibble
