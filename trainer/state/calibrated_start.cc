#include "trainer/state/calibrated_start.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/models/checkpoint_tensors.h"
#include "core/models/weights.h"
#include "core/quant/held_scale.h"
#include "core/quant/pack.h"

namespace nibble {

void check_held_scales(const std::string& where, const ParameterSpec& parameter, int64_t first_row,
                       std::span<const uint16_t> scales, int64_t groups_per_row) {
  const auto bad = std::find_if_not(scales.begin(), scales.end(), quant::held_scale_is_valid);
  if (bad == scales.end()) return;
  const int64_t index = bad - scales.begin();
  fail(ErrorCode::kInvalidArgument,
       "{}, tensor '{}.weight_scale': row {}, group {} is {}; a scale that is held must be above 0 "
       "and at most {} (8.5 times it must be a finite BF16)",
       where, parameter.module, first_row + index / groups_per_row, index % groups_per_row,
       quant::bf16_to_float(*bad), 0x1.ep+124);
}

CalibratedStart::CalibratedStart(const std::filesystem::path& int4, const ParameterTable& table,
                                 const QuantizationPlan& plan, quant::CellPlace place)
    : table_(table), int4_(int4), config_(plan.config), place_(place) {
  const QuantizationPlan stored = checkpoint_plan(int4_, table);
  if (!stored.any() || stored.quantized != plan.quantized || stored.config.bits != 4 ||
      stored.config.group_size != config_.group_size) {
    fail(
        ErrorCode::kInvalidArgument,
        "'{}' is not quantized as the run is (INT4, groups of {}, the same matrices): a calibrated "
        "start takes its codes and scales as they are",
        int4.string(), config_.group_size);
  }
  check_checkpoint_tensors(int4_, table, stored);
}

CalibratedRows CalibratedStart::rows(int64_t parameter, std::span<const uint16_t> weight,
                                     RowShard shard, const kernels::Parallel& parallel) const {
  const ParameterSpec& spec = table_.at(parameter);
  const StoredParameter packed = load_packed(int4_, spec, config_);
  const int64_t groups_per_row = spec.cols / config_.group_size;
  check_held_scales("checkpoint '" + int4_.path().string() + "'", spec, 0,
                    {packed.scale.data(), packed.scale.size()}, groups_per_row);
  CalibratedRows rows;
  rows.scale.assign(packed.scale.begin() + shard.begin * groups_per_row,
                    packed.scale.begin() + shard.end * groups_per_row);
  const int64_t first = shard.begin * spec.cols;
  rows.master.resize(static_cast<size_t>(shard.rows() * spec.cols));
  parallel.run(std::ssize(rows.master), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = first + i;
      const uint32_t word = packed.words[static_cast<size_t>(at / quant::kInt4PerWord)];
      const int code = quant::int4_at(word, static_cast<int>(at % quant::kInt4PerWord));
      const uint16_t scale = packed.scale[static_cast<size_t>(at / config_.group_size)];
      rows.master[static_cast<size_t>(i)] = quant::bf16_to_float(
          quant::start_master(weight[static_cast<size_t>(at)], code, scale, place_));
    }
  });
  return rows;
}

void CalibratedStart::check_plain(int64_t parameter, std::span<const uint16_t> weight) const {
  const ParameterSpec& spec = table_.at(parameter);
  const std::vector<uint16_t> stored = load_bf16(int4_, spec);
  if (std::equal(stored.begin(), stored.end(), weight.begin(), weight.end())) return;
  fail(ErrorCode::kInvalidArgument,
       "tensor '{}' of '{}' is not model.path's: the checkpoint was made from other weights, and a "
       "calibrated start needs those that it was made from",
       spec.name(), int4_.path().string());
}

}  // namespace nibble
