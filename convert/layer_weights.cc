#include "convert/layer_weights.h"

#include <ATen/ops/from_blob.h>

#include <iterator>

#include "core/base/fail.h"
#include "core/models/weights.h"

namespace nibble {

const at::Tensor& LayerWeights::load(int64_t parameter) {
  const ParameterSpec& spec = table_.at(parameter);
  std::vector<uint16_t> bits = load_bf16(input_, spec);
  const at::Tensor host =
      at::from_blob(bits.data(), {spec.rows, spec.cols}, at::TensorOptions().dtype(at::kBFloat16));
  // A copy in either case: the blob's memory is this function's.
  return held_[parameter] = host.to(backend_.options().device(), at::kBFloat16,
                                    /*non_blocking=*/false, /*copy=*/true);
}

void LayerWeights::load_layer(int64_t layer) {
  std::erase_if(held_, [&](const auto& entry) { return table_.at(entry.first).layer >= 0; });
  for (int64_t p = 0; p < table_.size(); ++p) {
    if (table_.at(p).layer == layer) load(p);
  }
}

const at::Tensor& LayerWeights::at(int64_t parameter) const {
  const auto found = held_.find(parameter);
  NIBBLE_CHECK(found != held_.end(), "'{}' is used outside its layer", table_.at(parameter).module);
  return found->second;
}

kernels::WeightView LayerWeights::weight(int64_t parameter) const {
  const at::Tensor& value = at(parameter);
  return {kernels::WeightFormat::kBf16,
          value.const_data_ptr(),
          nullptr,
          value.size(0),
          value.size(1),
          0};
}

}  // namespace nibble
