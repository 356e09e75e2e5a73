#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "core/base/fail.h"
#include "core/kernels_cuda/log_softmax.h"
#include "core/ops/logit_chunk.h"
#include "core/ops_cuda/cuda_backend_impl.h"
#include "core/ops_cuda/gemm.h"

namespace nibble::ops {
namespace {

static_assert(sizeof(kernels::RowStats) == 3 * sizeof(float));

kernels::RowGrads rows_from(const Backend::LogProbGrads& grads, int64_t begin) {
  return {grads.log_prob.const_data_ptr<float>() + begin,
          grads.entropy.defined() ? grads.entropy.const_data_ptr<float>() + begin : nullptr};
}

}  // namespace

Backend::LogProbs CudaBackend::log_probs(const at::Tensor& hidden, const kernels::WeightView& head,
                                         const Targets& targets) const {
  const int64_t count = targets.row.size(0);
  const at::TensorOptions floats = hidden.options().dtype(at::kFloat);
  LogProbs out{at::empty({count}, floats), at::empty({count}, floats),
               at::empty({count, 3}, floats)};
  auto* stats = reinterpret_cast<kernels::RowStats*>(out.stats.data_ptr<float>());
  const int64_t step = gpu_logit_rows(head.rows);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t rows = std::min(step, count - begin);
    const at::Tensor chunk =
        linear_float(hidden.index_select(0, targets.row.narrow(0, begin, rows)), head);
    kernels::cuda::log_softmax_stats(chunk.const_data_ptr<float>(), rows, head.rows,
                                     targets.temperature, stats + begin, current_stream());
    kernels::cuda::target_log_probs(chunk.const_data_ptr<float>(), stats + begin,
                                    targets.target.const_data_ptr<int32_t>() + begin, rows,
                                    head.rows, targets.temperature,
                                    out.log_prob.data_ptr<float>() + begin,
                                    out.entropy.data_ptr<float>() + begin, current_stream());
  }
  return out;
}

at::Tensor CudaBackend::log_probs_backward(const at::Tensor& hidden,
                                           const kernels::WeightView& head, const Targets& targets,
                                           const at::Tensor& stats, const LogProbGrads& grads,
                                           float* dhead) const {
  const auto* row_stats = reinterpret_cast<const kernels::RowStats*>(stats.const_data_ptr<float>());
  const at::Tensor matrix = weight_matrix(head);
  const int64_t count = grads.log_prob.size(0);
  at::Tensor drows = at::empty({count, hidden.size(1)}, hidden.options());
  const int64_t step = gpu_logit_rows(head.rows);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t rows = std::min(step, count - begin);
    const at::Tensor x = hidden.index_select(0, targets.row.narrow(0, begin, rows));
    const at::Tensor chunk = linear_float(x, head);
    const at::Tensor dlogits = at::empty({rows, head.rows}, hidden.options());
    kernels::cuda::log_prob_backward(chunk.const_data_ptr<float>(), row_stats + begin,
                                     targets.target.const_data_ptr<int32_t>() + begin,
                                     rows_from(grads, begin), rows, head.rows, targets.temperature,
                                     bf16_bits(dlogits), current_stream());
    at::Tensor part = drows.narrow(0, begin, rows);
    at::mm_out(part, dlogits, matrix);
    if (dhead != nullptr) add_weight_gradient(dlogits, x, dhead);
  }
  // Several targets may follow one row: a group's responses all begin after its prompt.
  at::Tensor dhidden = at::empty_like(hidden);
  const IndexRuns runs = make_runs(targets.row, hidden.size(0));
  kernels::cuda::sum_runs(const_bf16_bits(drows), runs.runs(), hidden.size(1), bf16_bits(dhidden),
                          current_stream());
  return dhidden;
}

}  // namespace nibble::ops
