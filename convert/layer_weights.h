#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>

#include "core/checkpoint/hf_directory.h"
#include "core/ops/backend.h"
#include "core/ops/weight_source.h"
#include "core/spec/parameters.h"

namespace nibble {

/// Some weights of a checkpoint in BF16 on a backend's device: those of one layer at a time, so
/// that a model may be larger than memory.
class LayerWeights final : public ops::WeightSource {
 public:
  /// All borrowed.
  LayerWeights(const HfDirectory& input, const ParameterTable& table, const ops::Backend& backend)
      : input_(input), table_(table), backend_(backend) {}

  /// Reads a parameter. Throws Error naming a tensor that is missing or misshapen.
  const at::Tensor& load(int64_t parameter);
  /// Every parameter of a decoder layer, in place of those of another.
  void load_layer(int64_t layer);
  /// BF16 [rows, cols] in place of what was read.
  void replace(int64_t parameter, const at::Tensor& value) { held_[parameter] = value; }
  void drop(int64_t parameter) { held_.erase(parameter); }
  const at::Tensor& at(int64_t parameter) const;

  void enter_layer(int64_t, ops::Pass) override {}
  void leave_layer(int64_t, ops::Pass) override {}
  kernels::WeightView weight(int64_t parameter) const override;
  float* grad(int64_t) override { return nullptr; }

 private:
  const HfDirectory& input_;
  const ParameterTable& table_;
  const ops::Backend& backend_;
  std::map<int64_t, at::Tensor> held_;
};

}  // namespace nibble
