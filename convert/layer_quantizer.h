#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "convert/gptq.h"
#include "convert/layer_weights.h"
#include "convert/token_stream.h"
#include "core/spec/quantization.h"

namespace nibble {

enum class QuantMethod : uint8_t { kNearest, kGptq };

/// A matrix of a layer, quantized.
struct LayerMatrix {
  int64_t parameter = 0;
  QuantizedMatrix quantized;
  double weight_error = 0.0;          ///< |w - w'| / |w|, root mean squares
  double output_error = 0.0;          ///< the same of its outputs over calibration tokens
  double nearest_output_error = 0.0;  ///< the same if it were rounded to nearest
  double dampening = 0.0;
  Recovery recovery = Recovery::kNone;
  double elapsed_ms = 0.0;
};

/// Quantizes a model layer by layer, and the matrices of a layer in the order in which they are
/// used: what each is calibrated with comes from matrices that are quantized already, and each
/// multiplies the calibration tokens once (experts: all tokens for what is calibrated, then their
/// own).
class LayerQuantizer {
 public:
  /// All borrowed.
  LayerQuantizer(const ModelSpec& spec, const QuantizationPlan& plan, QuantMethod method,
                 const GptqOptions& options, const ops::Backend& backend, TokenStream& calibration)
      : spec_(spec),
        plan_(plan),
        method_(method),
        options_(options),
        backend_(backend),
        calibration_(calibration) {}

  /// `weights` hold the layer; what is quantized is replaced there by its rounded values. The
  /// calibration stream goes through the layer, unless it is the last. In the order of the
  /// parameter table.
  std::vector<LayerMatrix> quantize(int64_t layer, LayerWeights& weights) const;

 private:
  class Pass;
  std::vector<LayerMatrix> round_all(int64_t layer, LayerWeights& weights) const;

  const ModelSpec& spec_;
  const QuantizationPlan& plan_;
  const QuantMethod method_;
  const GptqOptions options_;
  const ops::Backend& backend_;
  TokenStream& calibration_;
};

}  // namespace nibble
