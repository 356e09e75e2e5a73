#include "trainer/frozen_model.h"

#include <span>
#include <utility>
#include <vector>

#include "core/checkpoint/hf_directory.h"
#include "core/models/rope_table.h"

namespace nibble {
namespace {

std::shared_ptr<const PackedShards> read_shards(const std::filesystem::path& directory,
                                                const ShardLayout& layout, DeviceKind device) {
  const HfDirectory model(directory);
  auto shards = std::make_shared<PackedShards>();
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const ParameterSpec& parameter = layout.table->at(p);
    const std::vector<uint16_t> whole = load_bf16(model, parameter);
    const RowShard shard = layout.shard(p);
    const auto rows = std::span<const uint16_t>(whole).subspan(
        static_cast<size_t>(shard.begin * parameter.cols),
        static_cast<size_t>(shard.rows() * parameter.cols));
    StoredParameter stored{Array<uint16_t>(rows, device), {}, {}};
    shards->parameters.push_back(std::move(stored));
  }
  return shards;
}

ShardLayout bf16_layout(const ModelSpec& spec, const MeshGroups& groups) {
  return {&spec.table, plan_bf16(spec.table), groups.mesh(), groups.rank()};
}

}  // namespace

FrozenModel::FrozenModel(const std::filesystem::path& directory, ModelSpec spec,
                         const MeshGroups& groups, const ops::Backend& backend, ShardHome home,
                         int64_t max_positions)
    : spec_(std::move(spec)),
      rope_(
          backend.place(make_rope_table(spec_.config.rope, spec_.config.head_dim, max_positions))),
      weights_(bf16_layout(spec_, groups), groups, backend.weight_kernels(), home) {
  const DeviceKind device =
      home == ShardHome::kHost ? offload_kind(backend.kind()) : backend.kind();
  weights_.set_shards(read_shards(directory, bf16_layout(spec_, groups), device));
}

}  // namespace nibble
