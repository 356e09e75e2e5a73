#include "trainer/tape_values.h"

#include <ATen/ops/from_blob.h>

namespace nibble {

std::vector<float> host_values(const at::Tensor& tensor) {
  const at::Tensor on_host = tensor.detach().cpu();
  const float* values = on_host.const_data_ptr<float>();
  return {values, values + on_host.numel()};
}

void run_backward(const at::Tensor& output, std::span<const float> grad, GatheredWeights& weights) {
  // from_blob takes no const pointer; nothing writes to it.
  const at::Tensor values =
      at::from_blob(const_cast<float*>(grad.data()), {static_cast<int64_t>(grad.size())},
                    at::TensorOptions().dtype(at::kFloat));
  output.backward(values.to(output.device()));
  weights.finish_backward();
}

}  // namespace nibble
