#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cli/model_flags.h"
#include "core/models/activation_type.h"
#include "core/ops/numerics.h"

namespace nibble {

/// What one sequence of n tokens gets from a model.
struct ScoredSequence {
  std::vector<float> log_prob;               ///< of tokens 1 .. n-1
  std::vector<std::vector<int32_t>> routes;  ///< [MoE layers][n * k], chosen experts; if wanted
};

struct LogProbOptions {
  ActivationType activations = ActivationType::kFloat32;  ///< on a CPU
  Numerics numerics = Numerics::kExact;                   ///< on a GPU
  float temperature = 1.0f;
  int64_t chunk_tokens = 256;  ///< rollout path: tokens of one step
  bool wants_routes = false;
};

/// One side of the system as a scorer of given tokens. The sides must agree to the bit. One thread.
class LogProbPath {
 public:
  virtual ~LogProbPath() = default;
  /// `ids`: 1 to max_position tokens of the vocabulary (the caller's duty).
  virtual ScoredSequence score(std::span<const int32_t> ids) = 0;
};

/// The trainer's: one pass over the whole sequence with autograd's operations, gradients off.
/// `model` outlives the path, here and below.
std::unique_ptr<LogProbPath> make_trainer_path(LoadedModel& model, const LogProbOptions& options);

/// The rollout engine's: chunk after chunk through static buffers and a KV cache.
std::unique_ptr<LogProbPath> make_rollout_path(const LoadedModel& model, const ModelFlags& flags,
                                               const LogProbOptions& options);

/// Positions to make room for, so that growing sequences do not remake tables every time: the next
/// power of two, at most the model's.
int64_t padded_positions(const ModelConfig& config, int64_t tokens);

}  // namespace nibble
