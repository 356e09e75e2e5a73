#pragma once

#include <cstdint>

#include "convert/layer_weights.h"
#include "convert/token_stream.h"

namespace nibble {

/// How far a quantized model is from the one it was made of, on text that neither was fitted to.
struct HeldOutResult {
  int64_t tokens = 0;                 ///< that are predicted
  double kl = 0.0;                    ///< mean over tokens of KL(original, quantized), nats
  double perplexity = 0.0;            ///< of the quantized model
  double reference_perplexity = 0.0;  ///< of the original
};

/// Compares two streams of the same windows after their last layer. Norm and head are the
/// original's in both; they are loaded into `weights` and dropped.
HeldOutResult compare_held_out(const ModelSpec& spec, const ops::Backend& backend,
                               LayerWeights& weights, const TokenStream& original,
                               const TokenStream& quantized);

}  // namespace nibble
