#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/comm/process_group.h"
#include "core/kernels/adamw.h"
#include "core/kernels/weight_kernels.h"
#include "trainer/config/train_config.h"
#include "trainer/parallel/packed_shards.h"

namespace nibble {

/// What one optimizer step did.
struct UpdateStats {
  double grad_norm = 0.0;  ///< over all ranks, before clipping
  double lr = 0.0;
  int64_t projected = 0;  ///< masters of all ranks that left the range of their held scales
};

/// This rank's rows of every parameter that is trained (the arrays of others are empty) in float32
/// with AdamW's moments, which may be BF16: the state that training changes and checkpoints keep.
struct OptimizerState {
  std::vector<Array<float>> master;
  std::vector<Array<float>> m;  ///< empty, like v, if moments are BF16
  std::vector<Array<float>> v;
  std::vector<Array<uint16_t>> m_bf16;  ///< empty, like v_bf16, if they are float32
  std::vector<Array<uint16_t>> v_bf16;
  uint64_t rounding_seed = 0;               ///< of BF16 moments (core/quant/moment_rounding.h)
  std::vector<Array<uint16_t>> held_scale;  ///< HeldScales; empty if scales are not held
  int64_t updates = 0;                      ///< optimizer steps taken

  OptimizerState() = default;  ///< nothing
  /// Zero moments, masters of the layout's sizes.
  explicit OptimizerState(const ShardLayout& layout, DeviceKind device = DeviceKind::kCpu,
                          MomentType moments = MomentType::kFp32);

  bool has_bf16_moments() const { return !m_bf16.empty(); }
  bool holds_scales() const { return !held_scale.empty(); }
  /// Holds the scales of a packing from now on. Throws Error{kInvalidArgument} naming tensor, row
  /// and group of one that cannot be held.
  void hold_scales(const ShardLayout& layout, const PackedShards& packed);

  /// One AdamW update from this rank's gradients, whose norm over all ranks is `grad_norm`, and in
  /// the same pass the packing of what it left, into `packed`. Under held scales masters stay in
  /// the range of their codes. Collective. Throws Error{kInternal} if the norm is not finite:
  /// nothing has changed then; and if a weight cannot be packed afterwards.
  UpdateStats update(const ShardLayout& layout, const OptimizerConfig& config,
                     std::span<const Array<float>> gradients, double grad_norm, ProcessGroup& group,
                     const kernels::WeightKernels& kernels, PackedShards& packed);

 private:
  std::vector<kernels::AdamwJob> update_jobs(const ShardLayout& layout,
                                             const OptimizerConfig& config,
                                             std::span<const Array<float>> gradients);
};

/// Of the gradients of all ranks together, summed in rank order, so that all ranks clip alike.
/// Collective.
double global_grad_norm(std::span<const Array<float>> gradients, ProcessGroup& group,
                        const kernels::WeightKernels& kernels);

}  // namespace nibble
