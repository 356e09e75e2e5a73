#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/checkpoint/hf_directory.h"
#include "core/kernels/parallel.h"
#include "core/quant/held_scale.h"
#include "core/spec/mesh.h"
#include "core/spec/quantization.h"

namespace nibble {

/// A rank's rows of one quantized matrix at a calibrated start.
struct CalibratedRows {
  std::vector<float> master;    ///< [rows, cols], BF16 values inside the cells of the codes
  std::vector<uint16_t> scale;  ///< BF16 bits [rows, cols/group], to be held
};

/// The INT4 checkpoint of `qat.start: calibrated` (docs/decisions/0009-held-scales.md). Its codes
/// and scales come from any grid. Immutable after construction; any thread may read.
class CalibratedStart {
 public:
  /// Reads headers. `table` must outlive this. Throws Error{kInvalidArgument} if the checkpoint is
  /// not quantized exactly by `plan`, Error naming the tensor if one is missing or misshapen.
  CalibratedStart(const std::filesystem::path& int4, const ParameterTable& table,
                  const QuantizationPlan& plan, quant::CellPlace place);

  /// Masters that pack into exactly the checkpoint's words under its scales: of each of `weight`
  /// (BF16 bits of the whole matrix, finite) the one that `place` says.
  /// Throws Error{kInvalidArgument} naming tensor, row and group of a scale that cannot be held.
  CalibratedRows rows(int64_t parameter, std::span<const uint16_t> weight, RowShard shard,
                      const kernels::Parallel& parallel) const;

  /// Throws Error{kInvalidArgument} naming a tensor that is not quantized and is not `weight` in
  /// the checkpoint: then it was made from another model.
  void check_plain(int64_t parameter, std::span<const uint16_t> weight) const;

 private:
  const ParameterTable& table_;
  const HfDirectory int4_;
  const QuantizationConfig config_;
  const quant::CellPlace place_;
};

/// Throws Error{kInvalidArgument} naming `where`, the tensor, row and group of the first scale that
/// cannot be held. `scales` are those of whole rows from `first_row` on.
void check_held_scales(const std::string& where, const ParameterSpec& parameter, int64_t first_row,
                       std::span<const uint16_t> scales, int64_t groups_per_row);

}  // namespace nibble
