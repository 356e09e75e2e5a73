#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/ops/weight_source.h"
#include "trainer/parallel/mesh_groups.h"
#include "trainer/parallel/packed_shards.h"

namespace nibble {

class BundleReduction;

/// Bytes that the ring moved since the last reset, by kind (this rank's received bytes).
struct GatherBytes {
  int64_t quantized = 0;
  int64_t plain = 0;
};

/// Where a rank keeps its packed shards between passes.
enum class ShardHome {
  kDevice,
  kHost,  ///< memory of offload_kind(), to spare the device's
};

/// The kind of memory that takes what a device of `kind` has no room for.
constexpr DeviceKind offload_kind(DeviceKind kind) {
  return kind == DeviceKind::kCuda ? DeviceKind::kCudaHost : kind;
}

/// The trainer's weights during a pass: the rows that this rank multiplies with (used_rows). What
/// it owns whole is used where it is. The rest is gathered, packed, from the ranks that use the
/// same rows, into a ring of two layers, one layer ahead of use, forward and again backward;
/// embedding, final norm and head stay gathered for a whole pass. INT4 codes and scales move for
/// quantized parameters, BF16 for the rest: lossless, because the forward pass uses nothing else.
/// Gradients of a layer are summed over those ranks (in their order) into the owner's float32 shard
/// while the next layer computes.
///
/// Shards that are kept on the host all go through the ring: a layer's rows are copied to the
/// device while the layer before it computes.
///
/// All ranks must run the same sequence of passes. One thread.
class GatheredWeights final : public ops::WeightSource {
 public:
  /// The groups, `kernels` (of the device whose bytes they move) and `layout.table` must outlive
  /// this.
  GatheredWeights(const ShardLayout& layout, const MeshGroups& groups,
                  const kernels::WeightKernels& kernels, ShardHome home = ShardHome::kDevice);
  ~GatheredWeights() override;

  /// Weights of the next passes.
  void set_shards(std::shared_ptr<const PackedShards> shards);

  /// Gathers what is not in a layer. Collective; call before each pass.
  void begin_pass();
  /// Ends a pass with gradients: sums those of embedding, norm and head, and waits for the layers'.
  /// Collective.
  void finish_backward();

  void enter_layer(int64_t layer, ops::Pass pass) override;
  void leave_layer(int64_t layer, ops::Pass pass) override;
  kernels::WeightView weight(int64_t parameter) const override;
  float* grad(int64_t parameter) override;

  /// From now on passes leave gradients of what is not frozen (grad() of what is stays null);
  /// allocates the float32 shards.
  void enable_gradients();
  void zero_gradients();
  /// This rank's rows of dL/dw', one array per parameter; empty where it is frozen.
  std::vector<Array<float>>& gradients() { return gradient_shards_; }

  GatherBytes take_bytes();

 private:
  struct Unit;  // the parameters that are gathered together: a layer, or everything outside layers
  struct Slot;  // one gathered unit

  bool is_shared(int64_t parameter) const;  // several ranks own rows of what this one uses
  bool is_resident(int64_t parameter) const { return !lane_ && !is_shared(parameter); }
  void start_gather(Slot& slot, int64_t unit);
  void finish_gather(Slot& slot);
  void size_slot(Slot& slot, const Unit& unit) const;
  void zero_slot_gradients(Slot& slot);
  void start_reduction(Slot& slot);
  void finish_reduction();
  Slot& slot_of_unit(int64_t unit) const;

  ShardLayout layout_;
  const kernels::WeightKernels& kernels_;
  const std::unique_ptr<CopyLane> lane_;  // of shards on the host; null if they are on the device
  std::shared_ptr<const PackedShards>
      shards_;                       // shared with the weight sender: a published version
  std::vector<ParameterSpec> used_;  // with the rows that are used
  std::vector<Unit> units_;          // layers, then the outer unit
  std::vector<std::pair<int64_t, size_t>> place_;  // parameter -> (unit, index in unit)
  std::vector<std::unique_ptr<Slot>> ring_;
  std::unique_ptr<Slot> outer_;
  std::vector<std::unique_ptr<BundleReduction>> reductions_;  // by Sharing
  std::vector<Array<float>> gradient_shards_;
  GatherBytes bytes_;
};

}  // namespace nibble
