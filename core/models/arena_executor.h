#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/kernels/attention.h"
#include "core/kernels/linear.h"
#include "core/kernels/parallel.h"
#include "core/kernels/rope.h"
#include "core/models/activation_type.h"
#include "core/models/decoder.h"
#include "core/models/kv_cache.h"
#include "core/models/step_ranks.h"
#include "core/ops/weight_source.h"

namespace nibble {

/// Tokens of one engine step, of any mixture of sequences, prefill chunks and decodes.
struct ArenaStep {
  std::span<const int32_t> tokens;    ///< [T], T >= 1
  std::span<const int32_t> position;  ///< [T]
  std::span<const int32_t> slot;      ///< [T]: cache slot that receives this token's key and value
  kernels::KeyIndex keys;             ///< rows are cache slots; include the token's own
  /// float32 [T, hidden]: of a draft head, the state of its model before each token; else empty.
  std::span<const float> joined = {};
};

/// Runs a decoder over static buffers and a KV cache (run_decoder): nothing is allocated after
/// construction. Same operations and summation order as TapeExecutor. With several ranks all run
/// the same steps, each with its rows of the weights (used_rows()) and its heads' keys and values
/// (rank_config()). One thread.
class ArenaExecutor {
 public:
  using Value = float*;
  struct Routing {
    const int32_t* expert;
    const float* weight;
  };

  struct Limits {
    int64_t max_tokens = 0;     ///< of one step
    int64_t max_positions = 0;  ///< of a sequence
  };
  ArenaExecutor(const ModelSpec& spec, Limits limits, const kernels::Parallel& parallel,
                ActivationType activations = ActivationType::kFloat32, StepRanks ranks = {});

  /// What an executor of these sizes takes, the cache apart.
  static int64_t num_bytes(const ModelSpec& spec, Limits limits, const Mesh& mesh = {});

  /// Final hidden states float32 [T, hidden], valid until the next call. `weights` may differ from
  /// step to step: that is how a new version is swapped in.
  const float* run(const ArenaStep& step, const ops::WeightSource& weights, KvCache& cache);

  /// Chosen experts of MoE layer `i` in the last step: int32 [T, k].
  std::span<const int32_t> routes(int64_t moe_layer) const;

  // The operations of run_layer().
  Value embed(int64_t parameter);
  Value join_hidden(Value embedded, const HiddenJoin& join);
  void enter_layer(int64_t layer, Value& residual);
  void leave_layer(int64_t layer, Value& residual) const;
  Value rms_norm(Value x, int64_t parameter);
  /// Products with matrices of one input, none of them an output projection.
  template <size_t n>
  std::array<Value, n> linears(Value x, const std::array<int64_t, n>& parameters) {
    std::array<Value, n> y;
    multiply(x, parameters, y);
    return y;
  }
  Value linear(Value x, int64_t parameter);
  Value router_logits(Value x, int64_t parameter) { return linear(x, parameter); }
  Value rope(Value x);
  Value attention(int64_t layer, Value q, Value k, Value v);
  Value silu_mul(Value gate, Value up);
  Value add(Value residual, Value x);
  Routing route(int64_t layer, Value logits);
  Value experts(Value x, const Routing& routing, int64_t first_expert);
  static Value own_tokens(Value x) { return x; }
  static Value all_tokens(Value x) { return x; }

 private:
  struct Allocation {
    int64_t offset;
    int64_t width;  // floats a token
  };
  float* allocate(int64_t width, int64_t tokens);
  int64_t width_of(const float* value) const;
  Value rounded(Value value, int64_t count) const;
  void all_gather(const float* part, int64_t count, float* all) const;
  void multiply(Value x, std::span<const int64_t> parameters, std::span<Value> y);
  Value gather_columns(Value x);
  void add_adapter(Value x, int64_t parameter, Value y);
  void run_held_experts(const float* x, const int32_t* expert, int64_t tokens, int64_t first_expert,
                        float* part);
  void exchange_parts(float* part, const int32_t* expert, const TokenShare& own);

  const ModelSpec& spec_;
  const StepRanks ranks_;
  const ModelConfig config_;  // of this rank
  const Limits limits_;
  const kernels::Parallel& parallel_;
  const ActivationType activations_;
  std::shared_ptr<const kernels::RopeTable> rope_;
  std::vector<float> residual_;
  std::vector<float> arena_;
  int64_t used_ = 0;
  std::vector<Allocation> allocations_;
  std::vector<std::vector<int32_t>> routes_;  // one per MoE layer, [max_tokens * k]
  std::vector<kernels::Product> products_;    // of one operation
  std::vector<int32_t> pair_token_;           // of each pair, in order of experts
  int64_t next_moe_layer_ = 0;
  size_t num_tokens_ = 0;                       // of the last run()
  const ArenaStep* step_ = nullptr;             // during run()
  const ops::WeightSource* weights_ = nullptr;  // during run()
  KvCache* cache_ = nullptr;                    // during run()
};

}  // namespace nibble
