#include "convert/held_out.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr int64_t kRowsPerChunk = 256;  // logits of so many tokens at a time

struct Targets {
  std::vector<int64_t> row;
  std::vector<int64_t> id;
};

// Every token but the first of a window is predicted by the one before.
Targets targets_of(const PackedBatch& batch) {
  Targets targets;
  for (size_t t = 1; t < batch.tokens.size(); ++t) {
    if (batch.index->position[t] == 0) continue;
    targets.row.push_back(static_cast<int64_t>(t) - 1);
    targets.id.push_back(batch.tokens[t]);
  }
  return targets;
}

at::Tensor to_device(const std::vector<int64_t>& values, const ops::Backend& backend) {
  return at::from_blob(const_cast<int64_t*>(values.data()), {std::ssize(values)},
                       at::TensorOptions().dtype(at::kLong))
      .clone()
      .to(backend.options().device());
}

double sum_of(const at::Tensor& values) { return values.sum(at::kDouble).item<double>(); }

}  // namespace

HeldOutResult compare_held_out(const ModelSpec& spec, const ops::Backend& backend,
                               LayerWeights& weights, const TokenStream& original,
                               const TokenStream& quantized) {
  weights.load(spec.table.final_norm);
  weights.load(spec.table.lm_head);
  const kernels::WeightView head = weights.weight(spec.table.lm_head);
  HeldOutResult result;
  double kl = 0.0, nll = 0.0, reference_nll = 0.0;
  for (int64_t b = 0; b < original.num_batches(); ++b) {
    const Targets targets = targets_of(original.batch(b));
    const at::Tensor row = to_device(targets.row, backend);
    const at::Tensor id = to_device(targets.id, backend).unsqueeze(1);
    const at::Tensor p_hidden = original.final_hidden(b, weights).index_select(0, row);
    const at::Tensor q_hidden = quantized.final_hidden(b, weights).index_select(0, row);
    const int64_t count = row.size(0);
    result.tokens += count;
    for (int64_t i = 0; i < count; i += kRowsPerChunk) {
      const int64_t n = std::min(kRowsPerChunk, count - i);
      const at::Tensor p =
          at::log_softmax(backend.linear_float(p_hidden.narrow(0, i, n).contiguous(), head), 1);
      const at::Tensor q =
          at::log_softmax(backend.linear_float(q_hidden.narrow(0, i, n).contiguous(), head), 1);
      kl += sum_of(p.exp().mul_(p.sub(q)));
      nll -= sum_of(q.gather(1, id.narrow(0, i, n)));
      reference_nll -= sum_of(p.gather(1, id.narrow(0, i, n)));
    }
  }
  weights.drop(spec.table.final_norm);
  weights.drop(spec.table.lm_head);
  const auto tokens = static_cast<double>(std::max<int64_t>(1, result.tokens));
  result.kl = kl / tokens;
  result.perplexity = std::exp(nll / tokens);
  result.reference_perplexity = std::exp(reference_nll / tokens);
  return result;
}

}  // namespace nibble
