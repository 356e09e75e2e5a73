#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/comm/process_group.h"

namespace nibble::ops {

/// Moves rows of tokens between the ranks that route them and the ranks that hold their experts:
/// expert e of E is on rank e * ranks / E, together with its neighbours. One for a layer and pass;
/// a cheap value. All ranks of the group call the same methods in the same order.
class ExpertExchange {
 public:
  /// Tells the other ranks how many rows there are for each expert. Collective.
  ///   begin  int32 [E + 1]: this rank's rows by expert, on the device whose bytes `group` moves
  ExpertExchange(ProcessGroup& group, const at::Tensor& begin);

  /// Rows sorted by expert -> the rows that come to this rank's experts, by rank, then by expert.
  at::Tensor to_holders(const at::Tensor& rows) const;
  /// The way back.
  at::Tensor to_routers(const at::Tensor& rows) const;
  /// Expert of each row that to_holders() brings, counted from this rank's first: int32 [R, 1].
  at::Tensor arrived_experts() const;

 private:
  ProcessGroup* group_;
  at::TensorOptions options_;
  std::vector<int64_t> sent_;      // rows to each rank
  std::vector<int64_t> received_;  // rows from each rank
  std::vector<int64_t> counts_;    // [ranks, experts here] of what came
};

}  // namespace nibble::ops
