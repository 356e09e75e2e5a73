#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/comm/process_group.h"

namespace nibble {

/// Rows of a matrix that each rank owns: contiguous, as even as possible, the same on every rank.
struct RowShard {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t rows() const { return end - begin; }
};
inline RowShard row_shard(int64_t rows, int rank, int world) {
  return {rows * rank / world, rows * (rank + 1) / world};
}

/// Element-wise sum over ranks of small arrays, in rank order on every rank, so that all ranks hold
/// the same bits. Collective.
void all_reduce_sum(ProcessGroup& group, std::span<double> values);
/// The largest of the ranks' numbers. Collective.
int64_t all_reduce_max(ProcessGroup& group, int64_t mine);

}  // namespace nibble
