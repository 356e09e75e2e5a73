#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "core/base/array.h"
#include "core/kernels/attention.h"
#include "core/kernels/rope.h"
#include "core/kernels_cuda/device_weight.h"
#include "core/models/decoder.h"
#include "core/models/step_ranks.h"
#include "core/ops/backend.h"
#include "core/ops/numerics.h"
#include "core/ops/weight_source.h"

namespace nibble {

/// Keys and values of every layer in token slots on the GPU: BF16 [layers, slots, kv_heads *
/// head_dim], allocated once.
class CudaKvCache {
 public:
  CudaKvCache(const ModelConfig& config, int64_t num_slots);
  uint16_t* keys(int64_t layer) { return data_.data() + 2 * layer * layer_values_; }
  uint16_t* values(int64_t layer) { return data_.data() + (2 * layer + 1) * layer_values_; }
  static int64_t bytes_per_slot(const ModelConfig& config);

 private:
  int64_t layer_values_;
  Array<uint16_t> data_;
};

/// Tokens of one engine step; all arrays on the GPU. A slot of -1 and a key count of 0 mark a token
/// that only fills a captured graph's batch.
struct CudaStep {
  int64_t num_tokens = 0;
  const int32_t* tokens = nullptr;    ///< [T]
  const int32_t* position = nullptr;  ///< [T]
  const int32_t* slot = nullptr;      ///< [T]
  kernels::KeyIndex keys;             ///< rows are cache slots; include the token's own
  const uint16_t* joined = nullptr;   ///< BF16 [T, hidden]: as ArenaStep::joined
};

/// ArenaExecutor's twin on the GPU: the same decoder over static device memory, BF16 activations.
/// Nothing is allocated after construction, and every pointer that a captured kernel sees stays the
/// same from step to step: weights are reached through a table on the device that set_weights()
/// overwrites. So a step can be captured as a CUDA graph, what ranks say to each other included.
/// One thread.
class CudaArena {
 public:
  struct Value {
    void* data = nullptr;
    int64_t width = 0;  ///< values a token
  };
  struct Routing {
    const int32_t* expert;
    const float* weight;
  };
  struct Limits {
    int64_t max_tokens = 0;     ///< of one step
    int64_t max_positions = 0;  ///< of a sequence
  };
  /// `spec` and `backend` (a CUDA one) must outlive this.
  CudaArena(const ModelSpec& spec, Limits limits, const ops::Backend& backend, Numerics numerics,
            StepRanks ranks = {});

  /// Uses these weights (on the GPU, of the model's shapes) from the next step on. They must live
  /// until the next call.
  void set_weights(const ops::WeightSource& weights, cudaStream_t stream);

  /// Enqueues a step; returns its final hidden states, BF16 [T, hidden], valid until the next one.
  const uint16_t* run(const CudaStep& step, CudaKvCache& cache, cudaStream_t stream);

  /// This rank's rows of the head (head_share()).
  kernels::cuda::DeviceWeight head() const;
  /// A parameter as kernels take it.
  kernels::cuda::DeviceWeight weight(int64_t parameter) const;
  /// Chosen experts of MoE layer `i` in the last step: device int32 [T, k].
  const int32_t* routes(int64_t moe_layer) const;
  /// Device memory of such an arena.
  static int64_t num_bytes(const ModelSpec& spec, Limits limits, const Mesh& mesh = {});

  // The operations of run_layer().
  Value embed(int64_t parameter);
  Value join_hidden(Value embedded, const HiddenJoin& join);
  void enter_layer(int64_t layer, Value& residual);
  void leave_layer(int64_t layer, Value& residual) const;
  Value rms_norm(Value x, int64_t parameter);
  template <size_t n>
  std::array<Value, n> linears(Value x, const std::array<int64_t, n>& parameters) {
    std::array<Value, n> y;
    for (size_t i = 0; i < n; ++i) y[i] = linear(x, parameters[i]);
    return y;
  }
  Value linear(Value x, int64_t parameter);
  Value router_logits(Value x, int64_t parameter);
  Value rope(Value x);
  Value attention(int64_t layer, Value q, Value k, Value v);
  Value silu_mul(Value gate, Value up);
  Value add(Value residual, Value x);
  Routing route(int64_t layer, Value logits);
  Value experts(Value x, const Routing& routing, int64_t first_expert);
  static Value own_tokens(Value x) { return x; }
  static Value all_tokens(Value x) { return x; }

 private:
  uint16_t* allocate(int64_t values);  // BF16, aligned; float32 and int32 take two each
  void all_gather(const uint16_t* part, int64_t count, uint16_t* all) const;
  Value gather_columns(Value x);
  // x w'^T, and what an adapter adds to it; no rows are gathered.
  Value own_linear(Value x, int64_t parameter);
  Value product(Value x, int64_t parameter);
  // Rows by expert, and the place there of each pair (token, choice).
  struct PairParts {
    const uint16_t* part;
    const int32_t* pair;
    const int32_t* place;
  };
  PairParts run_held_experts(const uint16_t* x, const int32_t* expert, int64_t tokens,
                             int64_t first_expert);
  PairParts exchange_parts(const PairParts& parts, const int32_t* expert, const TokenShare& own);

  const ModelSpec& spec_;
  const StepRanks ranks_;
  const ModelConfig config_;  // of this rank
  const Limits limits_;
  const Numerics numerics_;
  ops::SharedRope rope_;
  std::vector<kernels::WeightView> views_;  // of the parameters, and of head()
  Array<kernels::WeightView> table_;        // the same on the GPU
  Array<uint16_t> residual_;
  Array<uint16_t> arena_;
  Array<uint16_t> panel_;  // one dequantized matrix at a time
  int64_t used_ = 0;
  Array<int32_t> routes_;  // [moe layers, max_tokens * k]
  int64_t next_moe_layer_ = 0;
  const CudaStep* step_ = nullptr;  // during run(), like the next two
  CudaKvCache* cache_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace nibble
