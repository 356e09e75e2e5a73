#include <ATen/ops/zeros_like.h>

#include "core/base/fail.h"
#include "core/ops/tape_saved.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

struct LogProbFunction : torch::autograd::Function<LogProbFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& hidden,
                               const Backend* backend, Weight head,
                               const Backend::Targets& targets) {
    const Backend::LogProbs out =
        backend->log_probs(hidden, head.source->weight(head.index), targets);
    context->save_for_backward({hidden, targets.row, targets.target, out.stats});
    context->set_materialize_grads(false);  // most losses do not look at the entropy
    keep(context, "backend", backend);
    keep(context, "head", head);
    context->saved_data["temperature"] = static_cast<double>(targets.temperature);
    return {out.log_prob, out.entropy};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Weight head = kept<Weight>(context, "head");
    const Backend::Targets targets{
        saved[1], saved[2], static_cast<float>(context->saved_data["temperature"].toDouble())};
    const at::Tensor log_prob =
        grads[0].defined() ? grads[0].contiguous() : at::zeros_like(grads[1]).contiguous();
    const at::Tensor entropy = grads[1].defined() ? grads[1].contiguous() : at::Tensor();
    return {kept<const Backend*>(context, "backend")
                ->log_probs_backward(saved[0], head.source->weight(head.index), targets, saved[3],
                                     {log_prob, entropy}, head.grad()),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

TokenLogProbs token_log_probs(const Backend& backend, const at::Tensor& hidden, Weight head,
                              const Backend::Targets& targets) {
  NIBBLE_CHECK(targets.row.scalar_type() == at::kLong && targets.target.scalar_type() == at::kInt &&
                   targets.row.numel() == targets.target.numel(),
               "targets: rows {}, tokens {}", describe(targets.row), describe(targets.target));
  auto out = LogProbFunction::apply(hidden, &backend, head, targets);
  return {out[0], out[1]};
}

}  // namespace nibble::ops
