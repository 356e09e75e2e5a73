#include "core/ops/expert_exchange.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "core/base/fail.h"
#include "core/ops/rank_ops.h"

namespace nibble::ops {

ExpertExchange::ExpertExchange(ProcessGroup& group, const at::Tensor& begin)
    : group_(&group), options_(begin.options()) {
  const int64_t experts = begin.numel() - 1;
  const int64_t ranks = group.world();
  NIBBLE_CHECK(experts % ranks == 0, "{} experts on {} ranks", experts, ranks);
  const at::Tensor all = all_gather(begin, group).cpu();
  const int64_t here = experts / ranks;
  for (int64_t r = 0; r < ranks; ++r) {
    const auto* of_rank = all.const_data_ptr<int32_t>() + r * (experts + 1);
    const int32_t* mine = of_rank + group.rank() * here;
    received_.push_back(mine[here] - mine[0]);
    for (int64_t e = 0; e < here; ++e) counts_.push_back(mine[e + 1] - mine[e]);
    if (r != group.rank()) continue;
    for (int64_t to = 0; to < ranks; ++to) {
      sent_.push_back(of_rank[(to + 1) * here] - of_rank[to * here]);
    }
  }
}

at::Tensor ExpertExchange::to_holders(const at::Tensor& rows) const {
  return exchange_rows(rows, sent_, received_, *group_);
}

at::Tensor ExpertExchange::to_routers(const at::Tensor& rows) const {
  return exchange_rows(rows, received_, sent_, *group_);
}

at::Tensor ExpertExchange::arrived_experts() const {
  int64_t rows = 0;
  for (const int64_t count : received_) rows += count;
  at::Tensor expert = at::empty({rows, 1}, at::TensorOptions().dtype(at::kInt));
  auto* to = expert.data_ptr<int32_t>();
  const int64_t here = std::ssize(counts_) / group_->world();
  for (int64_t i = 0; i < std::ssize(counts_); ++i) {
    to = std::fill_n(to, counts_[static_cast<size_t>(i)], static_cast<int32_t>(i % here));
  }
  return expert.to(options_.device());
}

}  // namespace nibble::ops
