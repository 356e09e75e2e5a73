#include "core/models/decoder.h"

namespace nibble {

ModelSpec make_model_spec(const ModelConfig& config) { return {config, model_parameters(config)}; }

}  // namespace nibble
