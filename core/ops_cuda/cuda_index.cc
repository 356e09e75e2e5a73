#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>

#include <algorithm>

#include "core/base/array.h"
#include "core/ops_cuda/cuda_backend_impl.h"

namespace nibble::ops {
namespace {

template <typename T>
at::Tensor to_gpu(const std::vector<T>& values, at::ScalarType type) {
  return at::from_blob(const_cast<T*>(values.data()), {static_cast<int64_t>(values.size())},
                       at::TensorOptions().dtype(type))
      .to(at::Device(at::kCUDA, at::cuda::current_device()));
}

struct OwnedTable {
  Array<float> cosine, sine;
  kernels::RopeTable table;
};

}  // namespace

kernels::cuda::Runs IndexRuns::runs() const {
  return {places.const_data_ptr<int64_t>(), begin.const_data_ptr<int32_t>(), begin.numel() - 1};
}

IndexRuns make_runs(const at::Tensor& index, int64_t num_values) {
  const auto [values, places] = at::sort(index, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor wanted = at::arange(num_values + 1, index.options());
  return {places, at::searchsorted(values, wanted, /*out_int32=*/true)};
}

SharedPlacedIndex CudaBackend::place(const SharedIndex& index) const {
  auto placed = std::make_shared<CudaIndex>();
  const int64_t tokens = index->tokens();
  std::vector<int32_t> cum_q, cum_k;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto at = static_cast<size_t>(t);
    if (t == 0 || index->first[at] != index->first[at - 1]) {
      cum_q.push_back(static_cast<int32_t>(t));
      cum_k.push_back(static_cast<int32_t>(index->first[at]));
    }
    placed->is_shared = placed->is_shared || at >= index->rows.size() || index->rows[at] != t;
  }
  placed->is_shared = placed->is_shared || static_cast<int64_t>(index->rows.size()) != tokens ||
                      index->num_keys() != tokens;
  cum_q.push_back(static_cast<int32_t>(tokens));
  cum_k.push_back(static_cast<int32_t>(index->rows.size()));
  for (size_t s = 0; s + 1 < cum_q.size(); ++s) {
    placed->max_q = std::max<int64_t>(placed->max_q, cum_q[s + 1] - cum_q[s]);
    placed->max_k = std::max<int64_t>(placed->max_k, cum_k[s + 1] - cum_k[s]);
  }
  placed->position = to_gpu(index->position, at::kInt);
  placed->rows = to_gpu(index->rows, at::kInt);
  placed->wide_rows = placed->rows.to(at::kLong);
  placed->first = to_gpu(index->first, at::kLong);
  placed->count = to_gpu(index->count, at::kInt);
  placed->cum_q = to_gpu(cum_q, at::kInt);
  placed->cum_k = to_gpu(cum_k, at::kInt);
  if (placed->is_shared) placed->row_runs = make_runs(placed->rows, index->num_keys());
  return placed;
}

SharedRope CudaBackend::place(const SharedRope& host) const {
  auto owned = std::make_shared<OwnedTable>();
  const auto count = static_cast<size_t>(host->half * host->num_positions);
  owned->cosine = Array<float>(std::span(host->cosine, count), DeviceKind::kCuda);
  owned->sine = Array<float>(std::span(host->sine, count), DeviceKind::kCuda);
  owned->table = {owned->cosine.data(), owned->sine.data(), host->half, host->num_positions};
  return {owned, &owned->table};
}

}  // namespace nibble::ops
