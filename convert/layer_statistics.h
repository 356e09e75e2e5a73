#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <vector>

#include "core/models/tape_executor.h"
#include "core/spec/quantization.h"

namespace nibble {

/// x^T x over tokens of the input that some matrices of a layer share.
struct SharedInput {
  std::vector<int64_t> parameters;  ///< of the matrices that are quantized
  at::Tensor gram;                  ///< float32 [C, C], on and above its diagonal
};

/// The inputs of what a layer quantizes: q, k and v share theirs, gate and up theirs, in a layer
/// of experts all of them theirs; o, down and each expert's down have their own.
class LayerStatistics {
 public:
  LayerStatistics(const ModelSpec& spec, const QuantizationPlan& plan, int64_t layer,
                  const ops::Backend& backend);
  /// Adds the input of a matrix, unless it is not wanted or another has added it.
  void add(int64_t parameter, const at::Tensor& x);
  bool wants(int64_t parameter) const { return index_.contains(parameter); }
  /// The inputs, with whole grams; they are the caller's then.
  std::vector<SharedInput> take();

 private:
  const ops::Backend& backend_;
  std::vector<SharedInput> inputs_;
  std::map<int64_t, size_t> index_;  // by parameter
};

/// Runs a layer for its inputs alone: of experts each sees every token, and what the MLP or the
/// experts give out is not computed. Gradients must be off.
class StatisticsExecutor : public TapeExecutor {
 public:
  StatisticsExecutor(const ModelSpec& spec, ops::WeightSource& source,
                     std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs,
                     LayerStatistics& statistics);

  Value linear(const Value& x, int64_t parameter);
  Routing route(int64_t, const Value&) { return {}; }
  Value router_logits(const Value&, int64_t) { return {}; }
  Value experts(const Value& x, const Routing& routing, int64_t first_expert);
  Value add(const Value& a, const Value& b) { return b.defined() ? TapeExecutor::add(a, b) : a; }

 private:
  const ModelSpec& spec_;
  ops::WeightSource& source_;
  const ops::Backend& backend_;
  LayerStatistics& statistics_;
};

}  // namespace nibble
