#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "core/models/weights.h"
#include "weight_sync/manifest.h"

namespace nibble {

/// A model of a few kilobytes, and the bytes of each of its versions.
class SimModel {
 public:
  SimModel();
  /// Made once, by its number.
  const std::shared_ptr<const std::vector<StoredParameter>>& version(int64_t version) const;
  const std::vector<quant::ContentHash>& hashes(int64_t version) const;

  ModelConfig config;
  ParameterTable table;
  QuantizationPlan quantization;
  Manifest manifest;
  kernels::Serial serial;
  kernels::CpuWeightKernels kernels{serial};

 private:
  mutable std::map<int64_t, std::shared_ptr<const std::vector<StoredParameter>>> versions_;
  mutable std::map<int64_t, std::vector<quant::ContentHash>> hashes_;
};

}  // namespace nibble
