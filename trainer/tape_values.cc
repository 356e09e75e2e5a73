#include "trainer/tape_values.h"

#include <ATen/ops/from_blob.h>
#include <torch/csrc/autograd/autograd.h>

namespace nibble {

std::vector<float> host_values(const at::Tensor& tensor) {
  const at::Tensor on_host = tensor.detach().cpu();
  const float* values = on_host.const_data_ptr<float>();
  return {values, values + on_host.numel()};
}

void run_backward(std::initializer_list<OutputGrad> outputs, GatheredWeights& weights) {
  std::vector<at::Tensor> tensors, grads;
  for (const auto& [output, grad] : outputs) {
    if (grad.empty()) continue;
    // from_blob takes no const pointer; nothing writes to it.
    const at::Tensor values =
        at::from_blob(const_cast<float*>(grad.data()), {static_cast<int64_t>(grad.size())},
                      at::TensorOptions().dtype(at::kFloat));
    tensors.push_back(output);
    grads.push_back(values.to(output.device()));
  }
  torch::autograd::backward(tensors, grads);
  weights.finish_backward();
}

}  // namespace nibble
