#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/models/activation_type.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/backend.h"
#include "core/ops/numerics.h"
#include "rollout/engine_rank.h"

namespace CLI {
class App;
}

namespace nibble {

/// Flags of the commands that run a model.
struct ModelFlags {
  std::filesystem::path model;
  std::string device = "auto";
  std::string dtype;  ///< empty: float32 on a CPU, bfloat16 on a GPU
  std::string numerics = "exact";
  int64_t fake_quant_group = 0;  ///< 0: as the checkpoint says
  std::string targets;
  int threads = 0;
  int tensor = 1;  ///< ranks that compute together
  int expert = 1;  ///< 1, or all of them: how many share a layer's experts
  /// Which of these ranks this process is; run_on_ranks() sets it.
  struct Rank {
    int number = 0;
    int port = 0;  ///< of the store on loopback where they meet
  };
  std::optional<Rank> rank;

  bool has_ranks() const { return tensor > 1; }
  Mesh mesh() const { return {tensor, tensor, expert}; }
};

/// Declares --model, --device, --dtype, --numerics, --fake-quant, --targets, --threads, --tensor
/// and
/// --expert. `flags` outlives the parse. The command goes through run_on_ranks().
void add_model_flags(CLI::App& command, ModelFlags& flags);

/// Throws Error{kInvalidArgument} naming a flag that is out of range.
void check_model_flags(const ModelFlags& flags);

/// Of a model on the CPU: float32 unless the flags say otherwise.
ActivationType activation_type(const ModelFlags& flags);
Numerics numerics(const ModelFlags& flags);

/// The backend of this machine's GPU if `device` (auto, cpu or cuda) says so, else null. Throws
/// Error{kInvalidArgument} for cuda where there is none.
std::unique_ptr<const ops::Backend> open_gpu(const std::string& device, Numerics numerics);

/// One of several ranks that hold a model together.
struct ModelRanks {
  ParameterTable held;  ///< of this rank's weights
  EngineRank rank;
};

/// A model in memory. Not movable: the weights borrow the specification.
struct LoadedModel {
  ModelSpec spec;
  std::unique_ptr<ModelRanks> ranks;         ///< null: this process has all of it
  std::unique_ptr<const ops::Backend> gpu;   ///< null: the weights are on the CPU
  std::shared_ptr<ResidentWeights> weights;  // shared: an engine holds on to what it serves
  explicit LoadedModel(ModelSpec model_spec) : spec(std::move(model_spec)) {}
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;
};

/// Checks the flags, sets the number of threads and loads what they say, onto a GPU if they say so:
/// --device auto takes one where there is one, unless --dtype float32 asks for a CPU's numerics.
/// One of several ranks loads its part and meets the others. Throws Error naming what is wrong.
std::unique_ptr<LoadedModel> load_model(const ModelFlags& flags);

}  // namespace nibble
