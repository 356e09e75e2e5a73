#pragma once

#include <cstdint>
#include <vector>

namespace nibble::kernels {

/// (token, slot) pairs sorted by expert, stable in token order: expert e owns entries
/// [begin[e], begin[e + 1]) of `pair`, and pair = token * top_k + slot.
struct ExpertOrder {
  std::vector<int64_t> begin;
  std::vector<int32_t> pair;
};

///   expert  int32 [tokens * top_k], each in [0, num_experts); throws Error{kInvalidArgument} else
ExpertOrder order_by_expert(const int32_t* expert, int64_t tokens, int64_t top_k,
                            int64_t num_experts);

}  // namespace nibble::kernels
