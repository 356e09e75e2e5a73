#include "trainer/parallel/packed_shards.h"

#include <mutex>

#include "core/base/fail.h"
#include "core/quant/pack.h"

namespace nibble {

int64_t ShardLayout::shard_elements(int64_t parameter) const {
  return shard(parameter).rows() * table->at(parameter).cols;
}

int64_t ShardLayout::trained_elements(int64_t parameter) const {
  return trained(parameter).rows() * table->at(parameter).cols;
}

int64_t packed_bytes(const ShardLayout& layout, int64_t parameter, int64_t rows) {
  const int64_t cols = layout.table->at(parameter).cols;
  if (!layout.quantized(parameter)) return rows * cols * 2;
  return rows * (cols / 2 + cols / layout.plan.config.group_size * 2);
}

struct PackBuffers::Shelf {
  explicit Shelf(FixedParameters f) : fixed(std::move(f)) {}
  FixedParameters fixed;  // that all buffers have views of
  std::mutex mutex;
  std::vector<std::unique_ptr<PackedShards>> free;  // guarded by mutex
};

PackBuffers::PackBuffers(FixedParameters fixed)
    : shelf_(std::make_shared<Shelf>(std::move(fixed))) {}

std::shared_ptr<PackedShards> PackBuffers::acquire(const ShardLayout& layout, DeviceKind device) {
  std::unique_ptr<PackedShards> buffer;
  {
    const std::lock_guard lock(shelf_->mutex);
    if (!shelf_->free.empty()) {
      buffer = std::move(shelf_->free.back());
      shelf_->free.pop_back();
    } else {
      // Giving a buffer back must not allocate.
      shelf_->free.reserve(static_cast<size_t>(++num_allocated_));
    }
  }
  if (!buffer) {
    buffer = std::make_unique<PackedShards>();
    FixedParameters& fixed = shelf_->fixed;
    for (int64_t p = 0; p < layout.table->size(); ++p) {
      if (layout.is_frozen(p)) {
        buffer->parameters.push_back(fixed.frozen.at(static_cast<size_t>(p)).shared());
        continue;
      }
      buffer->parameters.push_back(StoredParameter::make(
          layout.table->at(p), layout.shard(p).rows(), layout.plan, layout.quantized(p), device));
    }
    for (StoredParameter& rider : fixed.riders) buffer->parameters.push_back(rider.shared());
  }
  return {buffer.release(), [shelf = shelf_](PackedShards* shards) {
            const std::lock_guard lock(shelf->mutex);
            shelf->free.emplace_back(shards);
          }};
}

std::vector<kernels::PackJob> pack_jobs(const ShardLayout& layout,
                                        std::span<const Array<float>> masters, HeldScales held,
                                        PackedShards& packed) {
  std::vector<kernels::PackJob> jobs;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const ParameterSpec& whole = layout.table->at(p);
    StoredParameter& out = packed.parameters[static_cast<size_t>(p)];
    const int64_t group = layout.quantized(p) ? layout.plan.config.group_size : 0;
    jobs.push_back({masters[static_cast<size_t>(p)].data(),
                    {layout.trained(p).rows(), whole.cols, group},
                    out.words.data(),
                    out.scale.data(),
                    out.bf16.data(),
                    held.empty() ? nullptr : held[static_cast<size_t>(p)].data()});
  }
  return jobs;
}

std::string packing_problem_text(const ShardLayout& layout, const kernels::PackProblem& problem) {
  const auto p = static_cast<int64_t>(problem.job);
  return fmt::format("tensor '{}', row {}, {} {}: {}", layout.table->at(p).name(),
                     layout.shard(p).begin + problem.row, layout.quantized(p) ? "group" : "column",
                     problem.group, quant::problem_text(problem.kind));
}

std::shared_ptr<const PackedShards> pack_shards(const ShardLayout& layout,
                                                std::span<const Array<float>> masters,
                                                const kernels::WeightKernels& kernels,
                                                PackBuffers& buffers, HeldScales held) {
  std::shared_ptr<PackedShards> packed = buffers.acquire(layout, kernels.device());
  if (const auto problem = kernels.pack(pack_jobs(layout, masters, held, *packed))) {
    fail(ErrorCode::kInvalidArgument, "{}", packing_problem_text(layout, *problem));
  }
  return packed;
}

PartChanges& PartChanges::operator+=(PartChanges other) {
  const auto own = counts(), theirs = other.counts();
  for (size_t i = 0; i < own.size(); ++i) *own[i] += *theirs[i];
  return *this;
}

PartChanges PackChanges::total() const {
  PartChanges sum = rest;
  for (const PartChanges& layer : layers) sum += layer;
  return sum;
}

PackChanges count_changes(const ShardLayout& layout, const PackedShards& before,
                          const PackedShards& after, const kernels::WeightKernels& kernels) {
  std::vector<kernels::CompareJob> jobs;
  for (size_t p = 0; p < static_cast<size_t>(layout.table->size()); ++p) {
    const StoredParameter& a = before.parameters[p];
    const StoredParameter& b = after.parameters[p];
    if (layout.is_frozen(static_cast<int64_t>(p))) {
      jobs.emplace_back();
      continue;
    }
    const bool quantized = layout.quantized(static_cast<int64_t>(p));
    const auto& values = [&](const StoredParameter& of) -> const auto& {
      return quantized ? of.scale : of.bf16;
    };
    jobs.push_back({{a.words.data(), b.words.data()},
                    static_cast<int64_t>(b.words.size()),
                    {values(a).data(), values(b).data()},
                    static_cast<int64_t>(values(b).size())});
  }
  const auto counted = kernels.count_changes(jobs);
  PackChanges changes;
  changes.layers.resize(layout.table->layers.size());
  for (size_t p = 0; p < jobs.size(); ++p) {
    PartChanges part;
    if (layout.quantized(static_cast<int64_t>(p))) {
      part.codes = static_cast<double>(quant::kInt4PerWord * jobs[p].num_words);
      part.changed_codes = static_cast<double>(counted[p].codes);
      part.scales = static_cast<double>(jobs[p].num_values);
      part.changed_scales = static_cast<double>(counted[p].values);
    }
    part.bytes = static_cast<double>(4 * jobs[p].num_words + 2 * jobs[p].num_values);
    part.changed_bytes = static_cast<double>(counted[p].bytes);
    const int64_t layer = layout.table->at(static_cast<int64_t>(p)).layer;
    (layer < 0 ? changes.rest : changes.layers[static_cast<size_t>(layer)]) += part;
  }
  return changes;
}

}  // namespace nibble
