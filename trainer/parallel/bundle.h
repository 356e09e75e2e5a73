#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/base/array.h"
#include "core/comm/process_group.h"
#include "core/models/weights.h"
#include "trainer/parallel/packed_shards.h"

namespace nibble {

/// Parameters of a unit (a layer, or what is in none) that the same ranks own. They travel
/// together, in this order; a quantized one as words, then scales.
struct Bundle {
  ProcessGroup* group = nullptr;  ///< of the owners, by place
  std::vector<int64_t> parameters;
  std::vector<size_t> index;         ///< place of each in its unit
  std::vector<int64_t> owner_bytes;  ///< packed bytes of each owner's rows
  int64_t max_owner_bytes = 0;
  int64_t quantized_bytes = 0;  ///< of the other owners' rows
  int64_t plain_bytes = 0;

  int num_owners() const { return group->world(); }
  /// Rows of member `i` that an owner has, counted from the first row that is used.
  RowShard rows_of(const ShardLayout& layout, size_t i, int owner) const;
};
Bundle make_bundle(const ShardLayout& layout, ProcessGroup& group, std::vector<int64_t> parameters,
                   std::vector<size_t> index);

/// Gathers one bundle's packed rows from their owners: start() sends, finish() fills. Memory is
/// kept from bundle to bundle.
class BundleGather {
 public:
  explicit BundleGather(DeviceKind device) : send_(device), staging_(device) {}
  /// `lane`: of shards on the host, else null.
  void start(const Bundle& bundle, const PackedShards& shards, CopyLane* lane);
  /// `full`: the unit's parameters, sized for the rows that are used.
  void finish(const ShardLayout& layout, const Bundle& bundle, std::vector<StoredParameter>& full);

 private:
  Array<std::byte> send_;
  Array<std::byte> staging_;
  std::unique_ptr<PendingTransfer> transfer_;
};

/// Sums one bundle's float32 gradients over the owners, in their order, each into its own rows.
class BundleReduction {
 public:
  explicit BundleReduction(DeviceKind device) : send_(device), receive_(device) {}
  /// `bundle`: of parameters that are trained. `grads`: of all the unit's. They may change once
  /// this returns.
  void start(const ShardLayout& layout, const Bundle& bundle,
             const std::vector<Array<float>>& grads);
  /// Adds to `shards`, one array per parameter of the model. Nothing if none was started.
  void finish(const kernels::WeightKernels& kernels, std::vector<Array<float>>& shards);

 private:
  const Bundle* bundle_ = nullptr;
  Array<float> send_;
  Array<float> receive_;
  std::unique_ptr<PendingTransfer> transfer_;
};

}  // namespace nibble
