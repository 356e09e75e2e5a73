#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "core/models/activation_type.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"

namespace CLI {
class App;
}

namespace nibble {

/// Flags of the commands that run a model.
struct ModelFlags {
  std::filesystem::path model;
  std::string dtype = "float32";
  int64_t fake_quant_group = 0;  ///< 0: as the checkpoint says
  std::string targets;
  int threads = 0;
};

/// Declares --model, --dtype, --fake-quant, --targets and --threads. `flags` outlives the parse.
void add_model_flags(CLI::App& command, ModelFlags& flags);

/// Throws Error{kInvalidArgument} naming a flag that is out of range.
void check_model_flags(const ModelFlags& flags);

ActivationType activation_type(const ModelFlags& flags);

/// A model in memory. Not movable: the weights borrow the specification.
struct LoadedModel {
  ModelSpec spec;
  std::shared_ptr<ResidentWeights> weights;  // shared: an engine holds on to what it serves
  explicit LoadedModel(ModelSpec model_spec) : spec(std::move(model_spec)) {}
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;
};

/// Checks the flags, sets the number of threads and loads what they say. Throws Error naming what
/// is wrong.
std::unique_ptr<LoadedModel> load_model(const ModelFlags& flags);

}  // namespace nibble
