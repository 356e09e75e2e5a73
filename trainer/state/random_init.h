#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "core/base/json.h"
#include "core/kernels/parallel.h"
#include "core/spec/mesh.h"
#include "core/spec/parameters.h"

namespace nibble {

/// Weights drawn from nothing: a matrix is normal(0, stddev), a norm is 1.
struct RandomInit {
  uint64_t seed = 0;
  double stddev = 0.02;
};

/// `initializer_range` of a config.json, 0.02 (Transformers' default) where it has none. Throws
/// Error{kInvalidArgument} naming `what` if it is not a number above 0.
double initializer_range(const Json& config, const std::string& what);

/// Rows `rows` of parameter number `parameter` (its place in the ParameterTable) into `out`
/// [rows, cols]. Each element depends on seed, parameter, row and column only (Philox4x32 and
/// Box-Muller in double), so that any number of ranks draws the same model.
void draw_rows(const ParameterSpec& spec, int64_t parameter, RowShard rows, const RandomInit& init,
               const kernels::Parallel& parallel, std::span<float> out);

/// The same of an adapter's matrices: A is uniform in (-1/sqrt(in), 1/sqrt(in)), B is 0, so that a
/// model with new adapters computes what it computes without. PEFT's start: LoraLayer's
/// reset_lora_parameters() (peft/tuners/lora/layer.py) is kaiming_uniform_(A, a = sqrt(5)).
void draw_adapter_rows(const ParameterSpec& spec, int64_t parameter, RowShard rows, uint64_t seed,
                       const kernels::Parallel& parallel, std::span<float> out);

}  // namespace nibble
