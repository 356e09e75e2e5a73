#include "trainer/parallel/packed_shards.h"

#include "core/base/fail.h"

namespace nibble {

RowShard ShardLayout::shard_of(int64_t parameter, int of_rank) const {
  return row_shard(table->at(parameter).rows, of_rank, world);
}

int64_t ShardLayout::shard_elements(int64_t parameter) const {
  return shard(parameter).rows() * table->at(parameter).cols;
}

std::shared_ptr<const PackedShards> pack_shards(const ShardLayout& layout,
                                                std::span<const std::vector<float>> masters,
                                                const kernels::Parallel& parallel) {
  auto packed = std::make_shared<PackedShards>();
  packed->parameters.resize(masters.size());
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const auto& master = masters[static_cast<size_t>(p)];
    StoredParameter& out = packed->parameters[static_cast<size_t>(p)];
    const ParameterSpec& whole = layout.table->at(p);
    const RowShard shard = layout.shard(p);
    if (layout.quantized(p)) {
      const quant::GroupShape shape{shard.rows(), whole.cols, layout.plan.config.group_size};
      out.words.resize(static_cast<size_t>(shape.rows * shape.cols / 8));
      out.scale.resize(static_cast<size_t>(shape.rows * shape.groups_per_row()));
      const auto problem = kernels::quantize_pack_int4(master.data(), shape, out.words.data(),
                                                       out.scale.data(), parallel);
      if (problem) {
        fail(ErrorCode::kInvalidArgument, "tensor '{}', row {}, group {}: {}", whole.name(),
             shard.begin + problem->row, problem->group, quant::problem_text(problem->kind));
      }
    } else {
      out.bf16.resize(master.size());
      const int64_t bad = kernels::cast_bf16(master.data(), static_cast<int64_t>(master.size()),
                                             out.bf16.data(), parallel);
      if (bad >= 0) {
        fail(ErrorCode::kInvalidArgument,
             "tensor '{}', row {}, column {}: the weight is NaN or "
             "infinite",
             whole.name(), shard.begin + bad / whole.cols, bad % whole.cols);
      }
    }
  }
  return packed;
}

PackChanges count_changes(const ShardLayout& layout, const PackedShards& before,
                          const PackedShards& after, const kernels::Parallel& parallel) {
  PackChanges changes;
  for (size_t p = 0; p < after.parameters.size(); ++p) {
    if (!layout.quantized(static_cast<int64_t>(p))) continue;
    const StoredParameter& a = before.parameters[p];
    const StoredParameter& b = after.parameters[p];
    const auto words = static_cast<int64_t>(b.words.size());
    changes.codes += 8 * words;
    changes.changed_codes +=
        kernels::count_int4_changes(a.words.data(), b.words.data(), words, parallel).codes;
    changes.scales += static_cast<int64_t>(b.scale.size());
    for (size_t i = 0; i < b.scale.size(); ++i) {
      changes.changed_scales += a.scale[i] != b.scale[i] ? 1 : 0;
    }
  }
  return changes;
}

}  // namespace nibble
