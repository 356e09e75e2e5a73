#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "core/models/weights.h"
#include "core/spec/mesh.h"
#include "core/spec/parameters.h"
#include "core/spec/quantization.h"

namespace nibble {

/// How a model is cut among ranks: contiguous rows of every parameter, so that no group of the
/// quantizer is ever split.
struct ShardLayout {
  const ParameterTable* table = nullptr;
  QuantizationPlan plan;
  Mesh mesh;
  int rank = 0;

  /// Rows that this rank owns, and those that it multiplies with.
  RowShard shard(int64_t parameter) const { return owned_rows(*table, parameter, mesh, rank); }
  RowShard used(int64_t parameter) const { return used_rows(*table, parameter, mesh, rank); }
  Sharing sharing(int64_t parameter) const { return sharing_of(table->at(parameter), mesh); }
  int64_t shard_elements(int64_t parameter) const;
  bool is_frozen(int64_t parameter) const { return table->at(parameter).is_frozen; }
  /// Rows that this rank keeps masters of: shard() of what is trained, else none.
  RowShard trained(int64_t parameter) const {
    const RowShard own = shard(parameter);
    return is_frozen(parameter) ? RowShard{own.begin, own.begin} : own;
  }
  int64_t trained_elements(int64_t parameter) const;
  bool quantized(int64_t parameter) const { return plan.quantized[static_cast<size_t>(parameter)]; }
};

/// Bytes of `rows` rows of a parameter as they are stored, sent and gathered.
int64_t packed_bytes(const ShardLayout& layout, int64_t parameter, int64_t rows);

/// This rank's rows of every parameter as they are multiplied with and published: packed INT4 where
/// quantized, BF16 elsewhere. Immutable once made; a new optimizer step makes a new one.
struct PackedShards {
  /// One per ParameterTable entry; behind them what is published with the model (PackBuffers).
  std::vector<StoredParameter> parameters;
};

/// What no packing changes: a frozen base, and what is published with the model. In the memory that
/// packings are in.
struct FixedParameters {
  /// One a parameter of the layout, this rank's rows, nothing where it is trained; or none at all
  /// where all are.
  std::vector<StoredParameter> frozen;
  std::vector<StoredParameter> riders;  ///< behind the layout's parameters: a draft model
};

/// Memory of the packings of one layout, used again and again. A buffer comes back when its last
/// holder lets go (trainer, sender, an engine of this process), so that nobody packs into weights
/// that are in use. What is fixed exists once: every buffer has views of it. Any thread may let go;
/// buffers may outlive this. One thread acquires.
class PackBuffers {
 public:
  explicit PackBuffers(FixedParameters fixed = {});
  /// A buffer that nobody holds, its contents undefined (but for what is fixed): a free one, else a
  /// new one.
  std::shared_ptr<PackedShards> acquire(const ShardLayout& layout, DeviceKind device);
  int num_allocated() const { return num_allocated_; }

 private:
  struct Shelf;
  std::shared_ptr<Shelf> shelf_;  // shared: buffers find their way back after this is gone
  int num_allocated_ = 0;
};

/// What of some parameters differs between two packings; counts are exact in double.
struct PartChanges {
  double codes = 0;  ///< INT4 codes
  double changed_codes = 0;
  double scales = 0;
  double changed_scales = 0;
  double bytes = 0;  ///< of all that is published, BF16 too
  double changed_bytes = 0;
  /// All of the above, to be summed.
  std::array<double*, 6> counts() {
    return {&codes, &changed_codes, &scales, &changed_scales, &bytes, &changed_bytes};
  }
  PartChanges& operator+=(PartChanges other);
};

/// Differences between two packings of the same layout, what is fixed left out.
struct PackChanges {
  std::vector<PartChanges> layers;  ///< decoder layers
  PartChanges rest;                 ///< embedding, last norm, head
  PartChanges total() const;
};

/// Scales that are held, of this rank's rows: one array a parameter, empty where it is not
/// quantized. None: every packing derives its own (sym7).
using HeldScales = std::span<const Array<uint16_t>>;

/// One job a parameter that packs `masters` (this rank's rows) into `packed`; of no rows where the
/// parameter is frozen.
std::vector<kernels::PackJob> pack_jobs(const ShardLayout& layout,
                                        std::span<const Array<float>> masters, HeldScales held,
                                        PackedShards& packed);

/// Tensor, row and group of a weight that is not finite or overflows, which one of pack_jobs() met.
std::string packing_problem_text(const ShardLayout& layout, const kernels::PackProblem& problem);

/// Packs float32 masters (one array per parameter, this rank's rows) into one of `buffers`, which
/// are of this layout. One pass over each. Throws Error{kInvalidArgument} with
/// packing_problem_text() if a weight is not finite or overflows.
std::shared_ptr<const PackedShards> pack_shards(const ShardLayout& layout,
                                                std::span<const Array<float>> masters,
                                                const kernels::WeightKernels& kernels,
                                                PackBuffers& buffers, HeldScales held = {});

/// Over this rank's rows.
PackChanges count_changes(const ShardLayout& layout, const PackedShards& before,
                          const PackedShards& after, const kernels::WeightKernels& kernels);

}  // namespace nibble
