#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "core/base/fail.h"
#include "core/kernels/linear.h"
#include "core/kernels/log_softmax.h"
#include "core/ops/tape_saved.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

// Logits of this many rows exist at a time: 16 MiB of float32.
int64_t chunk_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t{4} << 20) / vocab); }

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

struct LogProbFunction : torch::autograd::Function<LogProbFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden, Weight head,
                               const TokenTargets& targets) {
    const kernels::WeightView w = head.source->weight(head.index);
    check_matrix(hidden, w.cols, "hidden states");
    const int64_t count = targets.row.size(0);
    at::Tensor log_prob = at::empty({count}, hidden.options());
    at::Tensor entropy = at::empty({count}, hidden.options());
    std::vector<kernels::RowStats> stats(static_cast<size_t>(count));
    const auto* target = targets.target.const_data_ptr<int32_t>();
    const int64_t step = chunk_rows(w.rows);
    for (int64_t begin = 0; begin < count; begin += step) {
      const int64_t rows = std::min(step, count - begin);
      const Chunk chunk = make_chunk(hidden, targets.row.narrow(0, begin, rows), w);
      kernels::log_softmax_stats(chunk.logits.const_data_ptr<float>(), rows, w.rows,
                                 targets.temperature, stats.data() + begin, torch_parallel());
      for (int64_t i = 0; i < rows; ++i) {
        const auto& s = stats[static_cast<size_t>(begin + i)];
        const float logit = chunk.logits.const_data_ptr<float>()[i * w.rows + target[begin + i]];
        log_prob.data_ptr<float>()[begin + i] = s.log_prob(logit, targets.temperature);
        entropy.data_ptr<float>()[begin + i] = s.entropy;
      }
    }
    context->save_for_backward({hidden, targets.row, targets.target});
    context->mark_non_differentiable({entropy});
    keep(context, "head", head);
    keep(context, "stats", std::move(stats));
    context->saved_data["temperature"] = static_cast<double>(targets.temperature);
    return {log_prob, entropy};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Weight head = kept<Weight>(context, "head");
    const auto& stats = kept<std::vector<kernels::RowStats>>(context, "stats");
    const kernels::WeightView w = head.source->weight(head.index);
    const auto temperature = static_cast<float>(context->saved_data["temperature"].toDouble());
    const at::Tensor dlogprob = grads[0].contiguous();
    at::Tensor dhidden = at::zeros_like(saved[0]);
    at::Tensor panel = at::empty({w.rows, w.cols}, saved[0].options());
    kernels::dequantize(w, panel.data_ptr<float>(), torch_parallel());
    float* grad = head.source->grad(head.index);
    const int64_t count = dlogprob.size(0);
    const int64_t step = chunk_rows(w.rows);
    for (int64_t begin = 0; begin < count; begin += step) {
      const int64_t rows = std::min(step, count - begin);
      const at::Tensor row = saved[1].narrow(0, begin, rows);
      const Chunk chunk = make_chunk(saved[0], row, w);
      kernels::log_prob_backward(chunk.logits.data_ptr<float>(), stats.data() + begin,
                                 saved[2].const_data_ptr<int32_t>() + begin,
                                 dlogprob.const_data_ptr<float>() + begin, rows, w.rows,
                                 temperature, torch_parallel());
      dhidden.index_add_(0, row, at::mm(chunk.logits, panel));
      if (grad != nullptr) {
        matrix_view(grad, w.rows, w.cols).addmm_(chunk.logits.t(), chunk.hidden);
      }
    }
    return {dhidden, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

TokenLogProbs token_log_probs(const at::Tensor& hidden, Weight head, const TokenTargets& targets) {
  NIBBLE_CHECK(targets.row.scalar_type() == at::kLong && targets.target.scalar_type() == at::kInt &&
                   targets.row.numel() == targets.target.numel(),
               "targets: rows {}, tokens {}", describe(targets.row), describe(targets.target));
  auto out = LogProbFunction::apply(hidden, head, targets);
  return {out[0], out[1]};
}

}  // namespace nibble::ops
