#include "core/kernels/expert_order.h"

#include "core/base/fail.h"

namespace nibble::kernels {

ExpertOrder order_by_expert(const int32_t* expert, int64_t tokens, int64_t top_k,
                            int64_t num_experts) {
  const int64_t pairs = tokens * top_k;
  ExpertOrder order;
  order.begin.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (int64_t i = 0; i < pairs; ++i) {
    if (expert[i] < 0 || expert[i] >= num_experts) {
      fail(ErrorCode::kInvalidArgument, "token {} is routed to expert {}, but there are {}",
           i / top_k, expert[i], num_experts);
    }
    ++order.begin[static_cast<size_t>(expert[i]) + 1];
  }
  for (size_t e = 0; e < static_cast<size_t>(num_experts); ++e)
    order.begin[e + 1] += order.begin[e];
  std::vector<int64_t> next(order.begin.begin(), order.begin.end() - 1);
  order.pair.resize(static_cast<size_t>(pairs));
  for (int64_t i = 0; i < pairs; ++i) {
    const auto slot = static_cast<size_t>(next[static_cast<size_t>(expert[i])]++);
    order.pair[slot] = static_cast<int32_t>(i);
  }
  return order;
}

}  // namespace nibble::kernels
