#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/comm/process_group.h"

// What ranks that compute one pass together do to each other's activations, under autograd. All of
// a group call the same operations in the same order, in the backward pass too. Sums over ranks go
// in rank order, in float32. See docs/decisions/0007-parallel-layouts.md.

namespace nibble::ops {

/// The ranks of a pass; null where a rank is alone.
struct RankGroups {
  ProcessGroup* tensor = nullptr;   ///< they work on the same tokens, each with its rows of weights
  ProcessGroup* expert = nullptr;   ///< they hold a layer's experts together
  ProcessGroup* context = nullptr;  ///< they share the tokens of the same samples
};

/// Which gradient of a gathered result each rank has.
enum class RankGradient {
  kSame,     ///< all of it, like every other rank
  kPartial,  ///< a summand of it
};

/// x of every rank, contiguous: [...] -> [ranks, ...]; not differentiable.
at::Tensor all_gather(const at::Tensor& x, ProcessGroup& group);

/// x; its gradient is the sum of the ranks'.
at::Tensor sum_gradients(const at::Tensor& x, ProcessGroup& group);

/// [T, C] on each rank -> [T, ranks * C], by rank.
at::Tensor gather_columns(const at::Tensor& x, ProcessGroup& group, RankGradient gradient);

/// The rows of a matrix that one of several ranks takes: as many on each, so that the last ones may
/// take a row that another takes too. Total >= 1.
struct RowPart {
  int64_t total = 0;
  int ranks = 1;
  int rank = 0;

  int64_t rows() const { return (total + ranks - 1) / ranks; }
  int64_t begin_of(int of_rank) const { return std::min(of_rank * rows(), total - rows()); }
  int64_t begin() const { return begin_of(rank); }
  /// The lowest rank that takes a row.
  int taker_of(int64_t row) const { return static_cast<int>(row / rows()); }
};
RowPart row_part(int64_t total, const ProcessGroup& group);

/// [part.rows(), ...] on each rank -> [part.total, ...]. A row that several ranks took comes from,
/// and has its gradient on, the lowest.
at::Tensor gather_rows(const at::Tensor& x, const RowPart& part, ProcessGroup& group,
                       RankGradient gradient = RankGradient::kSame);

/// Rows by destination rank -> rows by source rank; not differentiable.
///   rows_to, rows_from  one number per rank
at::Tensor exchange_rows(const at::Tensor& x, std::span<const int64_t> rows_to,
                         std::span<const int64_t> rows_from, ProcessGroup& group);

}  // namespace nibble::ops
