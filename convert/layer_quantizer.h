#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "convert/gptq.h"
#include "convert/layer_weights.h"
#include "convert/token_stream.h"

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

/// Quantizes a model layer by layer: what a layer is given comes from layers that are quantized
/// already. Frantar et al. 2022, with the order of columns of the static act-order.
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

  /// `weights` hold the layer; what is quantized is replaced there by its rounded values. In the
  /// order of the parameter table. The calibration stream then has to be advanced.
  std::vector<LayerMatrix> quantize(int64_t layer, LayerWeights& weights) const;

 private:
  std::vector<LayerMatrix> quantize_nearest_all(int64_t layer, const LayerWeights& weights) const;
  std::vector<LayerMatrix> quantize_gptq_all(int64_t layer, LayerWeights& weights) const;

  const ModelSpec& spec_;
  const QuantizationPlan& plan_;
  const QuantMethod method_;
  const GptqOptions options_;
  const ops::Backend& backend_;
  TokenStream& calibration_;
};

}  // namespace nibble
