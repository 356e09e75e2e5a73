#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "core/base/fail.h"
#include "core/kernels/linear.h"
#include "core/kernels/log_softmax.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/logit_chunk.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

static_assert(sizeof(kernels::RowStats) == 3 * sizeof(float));

struct Chunk {
  at::Tensor hidden;  // float32 [rows, C], gathered
  at::Tensor logits;  // float32 [rows, V]
};

Chunk make_chunk(const at::Tensor& hidden, const at::Tensor& row, const kernels::WeightView& w) {
  Chunk chunk;
  chunk.hidden = hidden.index_select(0, row);
  chunk.logits = at::empty({row.size(0), w.rows}, hidden.options());
  kernels::linear(chunk.hidden.const_data_ptr<float>(), w, row.size(0),
                  chunk.logits.data_ptr<float>(), w.rows, torch_parallel());
  return chunk;
}

kernels::RowGrads rows_from(const Backend::LogProbGrads& grads, int64_t begin) {
  return {grads.log_prob.const_data_ptr<float>() + begin,
          grads.entropy.defined() ? grads.entropy.const_data_ptr<float>() + begin : nullptr};
}

}  // namespace

Backend::LogProbs CpuBackend::log_probs(const at::Tensor& hidden, const kernels::WeightView& head,
                                        const Targets& targets) const {
  check_matrix(hidden, head.cols, "hidden states");
  const int64_t count = targets.row.size(0);
  LogProbs out{at::empty({count}, hidden.options()), at::empty({count}, hidden.options()),
               at::empty({count, 3}, hidden.options())};
  auto* stats = reinterpret_cast<kernels::RowStats*>(out.stats.data_ptr<float>());
  const auto* target = targets.target.const_data_ptr<int32_t>();
  const int64_t step = cpu_logit_rows(head.rows);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t rows = std::min(step, count - begin);
    const Chunk chunk = make_chunk(hidden, targets.row.narrow(0, begin, rows), head);
    kernels::log_softmax_stats(chunk.logits.const_data_ptr<float>(), rows, head.rows,
                               targets.temperature, stats + begin, torch_parallel());
    for (int64_t i = 0; i < rows; ++i) {
      const auto& s = stats[begin + i];
      const float logit = chunk.logits.const_data_ptr<float>()[i * head.rows + target[begin + i]];
      out.log_prob.data_ptr<float>()[begin + i] = s.log_prob(logit, targets.temperature);
      out.entropy.data_ptr<float>()[begin + i] = s.entropy;
    }
  }
  return out;
}

at::Tensor CpuBackend::log_probs_backward(const at::Tensor& hidden, const kernels::WeightView& head,
                                          const Targets& targets, const at::Tensor& stats,
                                          const LogProbGrads& grads, float* dhead) const {
  const auto* row_stats = reinterpret_cast<const kernels::RowStats*>(stats.const_data_ptr<float>());
  at::Tensor dhidden = at::zeros_like(hidden);
  at::Tensor panel = at::empty({head.rows, head.cols}, hidden.options());
  kernels::dequantize(head, panel.data_ptr<float>(), torch_parallel());
  const int64_t count = grads.log_prob.size(0);
  const int64_t step = cpu_logit_rows(head.rows);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t rows = std::min(step, count - begin);
    const at::Tensor row = targets.row.narrow(0, begin, rows);
    const Chunk chunk = make_chunk(hidden, row, head);
    kernels::log_prob_backward(chunk.logits.data_ptr<float>(), row_stats + begin,
                               targets.target.const_data_ptr<int32_t>() + begin,
                               rows_from(grads, begin), rows, head.rows, targets.temperature,
                               torch_parallel());
    dhidden.index_add_(0, row, at::mm(chunk.logits, panel));
    if (dhead != nullptr) {
      at::from_blob(dhead, {head.rows, head.cols}, options())
          .addmm_(chunk.logits.t(), chunk.hidden);
    }
  }
  return dhidden;
}

}  // namespace nibble::ops
