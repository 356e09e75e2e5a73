#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "convert/token_rows.h"
#include "core/models/packing.h"
#include "core/models/tape_executor.h"

namespace nibble {

/// Windows of tokens on their way through a model, layer after layer: the residual stream of each
/// stays here while the weights change. Gradients must be off. One thread.
class TokenStream {
 public:
  /// `windows` are borrowed, and so are `spec` and `backend`.
  TokenStream(const ModelSpec& spec, const ops::Backend& backend,
              std::span<const std::vector<int32_t>> windows, const StreamPlace& place);

  /// Embeds all tokens.
  void start(ops::WeightSource& source);
  /// Through a layer.
  void advance(int64_t layer, ops::WeightSource& source);
  /// After the last layer, and the final norm: [T, C] of a batch.
  at::Tensor final_hidden(int64_t batch, ops::WeightSource& source) const;

  /// Calls body(run, residual, batch) for each batch in order. update() keeps what it leaves in
  /// `residual`.
  using Body = std::function<void(TapeExecutor&, at::Tensor&, size_t)>;
  void visit(ops::WeightSource& source, const Body& body) const;
  void update(ops::WeightSource& source, const Body& body);
  /// More rows for the same tokens.
  TokenRows make_rows(int64_t width) const;

  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_batches() const { return std::ssize(batches_); }
  const PackedBatch& batch(int64_t i) const { return batches_[static_cast<size_t>(i)]; }

 private:
  TapeInputs inputs(size_t batch) const { return {batches_[batch], {}, &backend_, {}, false}; }

  const ModelSpec& spec_;
  const ops::Backend& backend_;
  const StreamPlace place_;
  const std::vector<PackedBatch> batches_;
  const std::shared_ptr<const kernels::RopeTable> rope_;
  int64_t num_tokens_ = 0;
  TokenRows residual_;
};

}  // namespace nibble
