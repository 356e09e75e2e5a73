#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/checkpoint/hf_directory.h"
#include "core/comm/process_group.h"
#include "core/kernels/parallel.h"
#include "core/models/weights.h"
#include "trainer/parallel/packed_shards.h"

namespace nibble {

/// The Hugging Face directory, BF16 or INT4, whose weights lie frozen beside adapters
/// (docs/decisions/0017-lora.md). Immutable after construction; any thread may read.
class FrozenBase {
 public:
  /// Reads headers. `table` is of the model with adapters; `plan` says how its parameters are
  /// multiplied with. Throws Error naming what is missing or of another model.
  FrozenBase(const std::filesystem::path& directory, const ParameterTable& table,
             const QuantizationPlan& plan);

  /// A whole frozen parameter in host memory: codes and scales as they are stored if they are
  /// stored by the plan, of whatever grid; else rounded to nearest (sym7), or in BF16. Throws as
  /// load_weights_quantized().
  StoredParameter parameter(int64_t parameter, const kernels::Parallel& parallel) const;

 private:
  HfDirectory directory_;
  ParameterTable table_;
  QuantizationPlan plan_;
  QuantizationPlan stored_;
};

/// This rank's rows of all frozen parameters on a device (FixedParameters::frozen).
std::vector<StoredParameter> load_frozen_rows(const FrozenBase& base, const ShardLayout& layout,
                                              DeviceKind device, const kernels::Parallel& parallel);

/// Names the frozen weights: SHA-256 over the names of the frozen parameters and the content hashes
/// of their bytes as they are multiplied with, of all rows. The same on all ranks of any layout.
/// Collective.
///   frozen  this rank's rows, as load_frozen_rows() gives them, on `kernels`' device
std::string frozen_digest(const ShardLayout& layout, std::span<const StoredParameter> frozen,
                          const kernels::WeightKernels& kernels, ProcessGroup& group);
/// The same of a directory, alone. Reads every frozen parameter once.
std::string frozen_digest(const FrozenBase& base, const ParameterTable& table,
                          const QuantizationPlan& plan, const kernels::Parallel& parallel);

}  // namespace nibble
