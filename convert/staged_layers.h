#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "convert/layer_quantizer.h"
#include "convert/matrix_report.h"
#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/kernels/parallel.h"
#include "core/models/weights.h"

namespace nibble {

/// Checks that what an interrupted conversion left in `directory` is of the same conversion, or
/// says there, durably, which one begins. Throws Error{kInvalidArgument} naming the first key of
/// `identity` that differs.
void claim_conversion(const std::filesystem::path& directory, const OrderedJson& identity);

/// Finished layers of a conversion, a safetensors file each, beside the model that is made of them
/// at the end: what --resume goes on from. A file appears whole.
class StagedLayers {
 public:
  /// Borrows `table` and `plan`.
  StagedLayers(std::filesystem::path directory, const ParameterTable& table,
               const QuantizationPlan& plan);

  bool has(int64_t layer) const { return std::filesystem::exists(path_of(layer)); }
  void put(int64_t layer, std::span<const LayerMatrix> matrices, const kernels::Parallel& parallel);
  /// What a layer's matrices were rounded to, into `weights`.
  void restore(int64_t layer, LayerWeights& weights, const ops::Backend& backend) const;
  /// Of all layers, in the order of the table.
  std::vector<ConvertedMatrix> reports() const;
  StoredParameter packed(int64_t parameter) const;

 private:
  std::filesystem::path path_of(int64_t layer) const;
  const SafetensorsFile& file_of(int64_t layer) const;
  std::vector<int64_t> quantized_of(int64_t layer) const;

  const std::filesystem::path directory_;
  const ParameterTable& table_;
  const QuantizationPlan& plan_;
  mutable int64_t open_layer_ = -1;
  mutable std::optional<SafetensorsFile> open_file_;  // of open_layer_: a layer is read at a time
};

}  // namespace nibble
