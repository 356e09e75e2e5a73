#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "convert/layer_statistics.h"
#include "core/models/packing.h"
#include "core/models/tape_executor.h"

namespace nibble {

/// Where the residual streams of many tokens are kept between layers.
struct StreamPlace {
  bool is_on_device = false;              ///< else in host memory
  std::filesystem::path spill_directory;  ///< not empty: in a nameless file there, mapped
};

/// Windows of tokens on their way through a model, layer after layer: the residual stream of each
/// stays here while the weights change. Gradients must be off. One thread.
class TokenStream {
 public:
  /// `windows` are borrowed, and so are `spec` and `backend`.
  TokenStream(const ModelSpec& spec, const ops::Backend& backend,
              std::span<const std::vector<int32_t>> windows, const StreamPlace& place);

  /// Embeds all tokens.
  void start(ops::WeightSource& source);
  /// What the layer's quantized matrices are given; streams stay where they are.
  void observe(int64_t layer, ops::WeightSource& source, LayerStatistics& statistics) const;
  /// Through a layer.
  void advance(int64_t layer, ops::WeightSource& source);
  /// After the last layer, and the final norm: [T, C] of a batch.
  at::Tensor final_hidden(int64_t batch, ops::WeightSource& source) const;

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_batches() const { return std::ssize(batches_); }
  const PackedBatch& batch(int64_t i) const { return batches_[static_cast<size_t>(i)]; }

 private:
  at::Tensor residual(size_t batch) const;
  TapeInputs inputs(size_t batch) const { return {batches_[batch], {}, &backend_, {}, false}; }

  const ModelSpec& spec_;
  const ops::Backend& backend_;
  const StreamPlace place_;
  std::vector<PackedBatch> batches_;
  std::shared_ptr<const kernels::RopeTable> rope_;
  int64_t num_tokens_ = 0;
  std::vector<at::Tensor> residuals_;  // one per batch
};

}  // namespace nibble
