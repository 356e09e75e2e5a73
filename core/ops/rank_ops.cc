#include "core/ops/rank_ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "core/base/fail.h"
#include "core/ops/tape_saved.h"

namespace nibble::ops {
namespace {

int64_t num_bytes(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(tensor.element_size());
}
std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()),
          static_cast<size_t>(num_bytes(tensor))};
}
std::span<std::byte> writable_bytes(at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()),
          static_cast<size_t>(num_bytes(tensor))};
}

// Part r of x goes to rank r, and the sum of what came is returned: [ranks, ...] -> [...].
at::Tensor reduce_scatter(const at::Tensor& parts, ProcessGroup& group) {
  at::Tensor received = at::empty_like(parts);
  const std::vector<int64_t> bytes(static_cast<size_t>(group.world()),
                                   num_bytes(parts) / group.world());
  group.all_to_all(bytes_of(parts), bytes, writable_bytes(received), bytes)->join();
  at::Tensor sum = received[0].to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  for (int r = 1; r < group.world(); ++r) sum.add_(received[r]);
  return sum.to(parts.scalar_type());
}

at::Tensor all_reduce(const at::Tensor& x, ProcessGroup& group) {
  const int64_t world = group.world();
  const int64_t part = (x.numel() + world - 1) / world;
  at::Tensor flat = x.reshape({-1});
  if (part * world != x.numel()) {
    flat = at::zeros({part * world}, x.options());
    flat.narrow(0, 0, x.numel()).copy_(x.reshape({-1}));
  }
  const at::Tensor sum = reduce_scatter(flat.view({world, part}), group);
  return all_gather(sum, group).view({-1}).narrow(0, 0, x.numel()).view(x.sizes());
}

struct SumGradientsFunction : torch::autograd::Function<SumGradientsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, ProcessGroup* group) {
    keep(context, "group", group);
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    return {all_reduce(grads[0].contiguous(), *kept<ProcessGroup*>(context, "group")),
            at::Tensor()};
  }
};

struct GatherColumnsFunction : torch::autograd::Function<GatherColumnsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, ProcessGroup* group,
                            RankGradient gradient) {
    keep(context, "group", group);
    keep(context, "gradient", gradient);
    return all_gather(x.contiguous(), *group)
        .permute({1, 0, 2})
        .reshape({x.size(0), group->world() * x.size(1)});
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    ProcessGroup& group = *kept<ProcessGroup*>(context, "group");
    const at::Tensor& dy = grads[0];
    const int64_t columns = dy.size(1) / group.world();
    if (kept<RankGradient>(context, "gradient") == RankGradient::kSame) {
      return {dy.narrow(1, group.rank() * columns, columns).contiguous(), at::Tensor(),
              at::Tensor()};
    }
    const at::Tensor by_rank =
        dy.reshape({dy.size(0), group.world(), columns}).permute({1, 0, 2}).contiguous();
    return {reduce_scatter(by_rank, group), at::Tensor(), at::Tensor()};
  }
};

// Place of each row of the whole in the ranks' parts, one after another.
at::Tensor row_sources(const RowPart& part) {
  at::Tensor source = at::empty({part.total}, at::TensorOptions().dtype(at::kLong));
  auto* to = source.data_ptr<int64_t>();
  for (int64_t t = 0; t < part.total; ++t) {
    const int rank = part.taker_of(t);
    to[t] = rank * part.rows() + t - part.begin_of(rank);
  }
  return source;
}

// The sum over ranks of what each has of the whole's gradient, on the rows of `part`.
at::Tensor sum_of_rows(const at::Tensor& whole, const RowPart& part, ProcessGroup& group) {
  std::vector<int64_t> shape = whole.sizes().vec();
  shape[0] = part.rows();
  shape.insert(shape.begin(), part.ranks);
  at::Tensor by_rank = at::empty(shape, whole.options());
  for (int r = 0; r < part.ranks; ++r) {
    by_rank[r].copy_(whole.narrow(0, part.begin_of(r), part.rows()));
  }
  return reduce_scatter(by_rank, group);
}

struct GatherRowsFunction : torch::autograd::Function<GatherRowsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const RowPart& part,
                            ProcessGroup* group, RankGradient gradient) {
    keep(context, "part", part);
    keep(context, "group", group);
    keep(context, "gradient", gradient);
    at::Tensor all = all_gather(x.contiguous(), *group).flatten(0, 1);
    if (part.rows() * part.ranks == part.total) return all;
    return all.index_select(0, row_sources(part).to(x.device()));
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const RowPart part = kept<RowPart>(context, "part");
    const bool is_partial = kept<RankGradient>(context, "gradient") == RankGradient::kPartial;
    at::Tensor dx = is_partial ? sum_of_rows(grads[0], part, *kept<ProcessGroup*>(context, "group"))
                               : grads[0].narrow(0, part.begin(), part.rows()).clone();
    // What a lower rank took too is not this one's.
    const int64_t shared = std::min(part.rank * part.rows() - part.begin(), part.rows());
    if (shared > 0) dx.narrow(0, 0, shared).zero_();
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor all_gather(const at::Tensor& x, ProcessGroup& group) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.insert(shape.begin(), group.world());
  at::Tensor out = at::empty(shape, x.options());
  group.all_gather(bytes_of(x), writable_bytes(out))->join();
  return out;
}

RowPart row_part(int64_t total, const ProcessGroup& group) {
  NIBBLE_CHECK(total >= 1, "no rows to share");
  return {total, group.world(), group.rank()};
}

at::Tensor sum_gradients(const at::Tensor& x, ProcessGroup& group) {
  return SumGradientsFunction::apply(x, &group);
}

at::Tensor gather_columns(const at::Tensor& x, ProcessGroup& group, RankGradient gradient) {
  return GatherColumnsFunction::apply(x, &group, gradient);
}

at::Tensor gather_rows(const at::Tensor& x, const RowPart& part, ProcessGroup& group,
                       RankGradient gradient) {
  return GatherRowsFunction::apply(x, part, &group, gradient);
}

at::Tensor exchange_rows(const at::Tensor& x, std::span<const int64_t> rows_to,
                         std::span<const int64_t> rows_from, ProcessGroup& group) {
  const int64_t row_bytes = x.size(1) * static_cast<int64_t>(x.element_size());
  std::vector<int64_t> send, receive;
  int64_t rows = 0;
  for (const int64_t count : rows_to) send.push_back(count * row_bytes);
  for (const int64_t count : rows_from) {
    receive.push_back(count * row_bytes);
    rows += count;
  }
  at::Tensor out = at::empty({rows, x.size(1)}, x.options());
  group.all_to_all(bytes_of(x), send, writable_bytes(out), receive)->join();
  return out;
}

}  // namespace nibble::ops
