#pragma once

#include <string>

#include "core/models/decoder.h"
#include "core/ops/weight_source.h"
#include "core/spec/mesh.h"

namespace nibble {

/// Throws Error{kInvalidArgument} naming `what` and the first tensor whose shape is not the
/// model's; of several ranks, the first one's part of it.
void check_weight_shapes(const ModelSpec& spec, const ops::WeightSource& weights,
                         const std::string& what, const Mesh& mesh = {});

}  // namespace nibble
