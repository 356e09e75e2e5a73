#pragma once

#include <functional>
#include <string>
#include <vector>

#include "convert/convert.h"
#include "core/checkpoint/hf_directory.h"
#include "core/models/decoder.h"

namespace nibble {

/// What a conversion works on, opened and checked.
class Conversion {
 public:
  explicit Conversion(const ConvertOptions& options);
  Conversion(const Conversion&) = delete;
  Conversion& operator=(const Conversion&) = delete;

  const HfDirectory& input() const { return input_; }
  const ModelSpec& spec() const { return spec_; }
  const QuantizationPlan& plan() const { return plan_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  int64_t input_bytes() const;  ///< in BF16
  int64_t layer_bytes(int64_t layer) const;
  /// What two runs must agree on for one to go on from the other. `device`: all of it that bits
  /// depend on.
  OrderedJson identity(const ConvertOptions& options, const CalibrationTokens* tokens,
                       const std::string& device) const;
  OrderedJson output_config() const;
  bool is_quantized(int64_t parameter) const {
    return plan_.quantized[static_cast<size_t>(parameter)];
  }

 private:
  HfDirectory input_;
  ModelSpec spec_;
  QuantizationPlan plan_;
  std::vector<std::string> warnings_;
};

/// The output of a conversion, claimed for it.
class ConversionOutput {
 public:
  ConversionOutput(const Conversion& conversion, const ConvertOptions& options,
                   const CalibrationTokens* tokens, const std::string& device);
  ModelOutput& model() { return model_; }
  /// Runs what fills it. If that fails for another reason than what it was given, such as a full
  /// disk, what is done stays to be gone on from.
  void fill(const std::function<void()>& work);
  int64_t bytes() const { return bytes_; }
  void finish(const Conversion& conversion);

 private:
  int64_t bytes_ = 0;
  ModelOutput model_;
};

/// The two ways of convert(): parameter by parameter, or layer by layer with text.
ConvertReport convert_parameters(const Conversion& conversion, const ConvertOptions& options,
                                 const ConvertProgress& progress);
ConvertReport convert_layers(const Conversion& conversion, const ConvertOptions& options,
                             const CalibrationTokens& tokens, const ops::Backend& backend,
                             const ConvertProgress& progress);

}  // namespace nibble
