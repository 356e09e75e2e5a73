#include "convert/token_stream.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_file.h>

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
      batches_(pack_windows(windows)),
      rope_(backend.place(
          make_rope_table(spec.config.rope, spec.config.head_dim, longest(windows)))) {
  for (const PackedBatch& batch : batches_) num_tokens_ += std::ssize(batch.tokens);
  const int64_t width = spec.config.hidden;
  const at::TensorOptions host = at::TensorOptions().dtype(backend.options().dtype());
  at::Tensor mapped;
  if (!place.spill_directory.empty() && num_tokens_ > 0) {
    const auto path = place.spill_directory / "residual.tmp";
    mapped = at::from_file(path.string(), /*shared=*/true, num_tokens_ * width, host)
                 .view({num_tokens_, width});
    std::filesystem::remove(path);  // the map keeps it
  }
  int64_t first = 0;
  for (const PackedBatch& batch : batches_) {
    const auto tokens = static_cast<int64_t>(batch.tokens.size());
    residuals_.push_back(
        mapped.defined()
            ? mapped.narrow(0, first, tokens)
            : at::empty({tokens, width}, place.is_on_device ? backend.options() : host));
    first += tokens;
  }
}

at::Tensor TokenStream::residual(size_t batch) const {
  return residuals_[batch].to(backend_.options().device());
}

void TokenStream::start(ops::WeightSource& source) {
  for (size_t b = 0; b < batches_.size(); ++b) {
    TapeExecutor run(spec_, source, rope_, inputs(b));
    residuals_[b].copy_(run.embed(spec_.table.embedding));
  }
}

void TokenStream::observe(int64_t layer, ops::WeightSource& source,
                          LayerStatistics& statistics) const {
  for (size_t b = 0; b < batches_.size(); ++b) {
    StatisticsExecutor run(spec_, source, rope_, inputs(b), statistics);
    at::Tensor value = residual(b);
    run_layer(run, spec_, layer, value);
  }
}

void TokenStream::advance(int64_t layer, ops::WeightSource& source) {
  for (size_t b = 0; b < batches_.size(); ++b) {
    TapeExecutor run(spec_, source, rope_, inputs(b));
    at::Tensor value = residual(b);
    run_layer(run, spec_, layer, value);
    residuals_[b].copy_(value);
  }
}

at::Tensor TokenStream::final_hidden(int64_t batch, ops::WeightSource& source) const {
  const auto b = static_cast<size_t>(batch);
  TapeExecutor run(spec_, source, rope_, inputs(b));
  return run.rms_norm(residual(b), spec_.table.final_norm);
}

}  // namespace nibble
