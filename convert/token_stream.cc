#include "convert/token_stream.h"

#include <algorithm>

#include "core/models/rope_table.h"

namespace nibble {
namespace {

// Of a pass: enough to keep a device busy, little beside a layer.
constexpr int64_t kTokensPerBatch = 4096;

int64_t longest(std::span<const std::vector<int32_t>> windows) {
  size_t tokens = 1;
  for (const auto& window : windows) tokens = std::max(tokens, window.size());
  return static_cast<int64_t>(tokens);
}

std::vector<PackedBatch> pack_windows(std::span<const std::vector<int32_t>> windows) {
  std::vector<PackedBatch> batches;
  std::vector<SequenceGroup> groups;
  int64_t tokens = 0;
  const auto flush = [&] {
    if (!groups.empty()) batches.push_back(pack_groups(groups));
    groups.clear();
    tokens = 0;
  };
  for (const auto& window : windows) {
    if (tokens + std::ssize(window) > kTokensPerBatch) flush();
    groups.push_back({window, {}});
    tokens += std::ssize(window);
  }
  flush();
  return batches;
}

}  // namespace

TokenStream::TokenStream(const ModelSpec& spec, const ops::Backend& backend,
                         std::span<const std::vector<int32_t>> windows, const StreamPlace& place)
    : spec_(spec),
      backend_(backend),
      place_(place),
      batches_(pack_windows(windows)),
      rope_(
          backend.place(make_rope_table(spec.config.rope, spec.config.head_dim, longest(windows)))),
      residual_(make_rows(spec.config.hidden)) {
  for (const PackedBatch& batch : batches_) num_tokens_ += std::ssize(batch.tokens);
}

TokenRows TokenStream::make_rows(int64_t width) const {
  std::vector<int64_t> tokens;
  for (const PackedBatch& batch : batches_) tokens.push_back(std::ssize(batch.tokens));
  return {tokens, width, backend_, place_};
}

void TokenStream::start(ops::WeightSource& source) {
  update(source, [&](TapeExecutor& run, at::Tensor& residual, size_t) {
    residual = run.embed(spec_.table.embedding);
  });
}

void TokenStream::visit(ops::WeightSource& source, const Body& body) const {
  for (size_t b = 0; b < batches_.size(); ++b) {
    TapeExecutor run(spec_, source, rope_, inputs(b));
    at::Tensor residual = residual_.load(b);
    body(run, residual, b);
  }
}

void TokenStream::update(ops::WeightSource& source, const Body& body) {
  for (size_t b = 0; b < batches_.size(); ++b) {
    TapeExecutor run(spec_, source, rope_, inputs(b));
    at::Tensor residual = residual_.load(b);
    body(run, residual, b);
    residual_.store(b, residual);
  }
}

void TokenStream::advance(int64_t layer, ops::WeightSource& source) {
  update(source, [&](TapeExecutor& run, at::Tensor& residual, size_t) {
    run_layer(run, spec_, layer, residual);
  });
}

at::Tensor TokenStream::final_hidden(int64_t batch, ops::WeightSource& source) const {
  const auto b = static_cast<size_t>(batch);
  TapeExecutor run(spec_, source, rope_, inputs(b));
  return run.rms_norm(residual_.load(b), spec_.table.final_norm);
}

}  // namespace nibble
