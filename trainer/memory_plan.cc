#include "trainer/memory_plan.h"

#include <algorithm>

#include "core/checkpoint/hf_directory.h"

namespace nibble {
namespace {

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kBf16Bytes = 2;

int64_t shard_bytes(const ShardLayout& layout) {
  int64_t bytes = 0;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    bytes += packed_bytes(layout, p, layout.shard(p).rows());
  }
  return bytes;
}

int64_t scale_bytes(const ShardLayout& layout) {
  int64_t bytes = 0;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    if (layout.quantized(p)) {
      bytes += kBf16Bytes * layout.shard_elements(p) / layout.plan.config.group_size;
    }
  }
  return bytes;
}

int64_t draft_bytes(const DraftPart& draft) {
  const ParameterTable table = model_parameters(draft.config);
  return shard_bytes({&table, draft.plan, {}, 0});
}

// GatheredWeights: two layers and what is in none, each with what is sent, what came, what it
// became and float32 gradients; the largest one's gradients once more on their way, both ends. What
// a rank owns whole needs none of it, unless it is on the host: then it needs the copy.
int64_t ring_bytes(const ShardLayout& layout, bool with_gradients, ShardHome home) {
  struct Unit {
    int64_t packed = 0;
    int64_t elements = 0;  // whose gradients are summed over ranks
  };
  std::vector<Unit> layers(layout.table->layers.size());
  Unit outer;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const ParameterSpec& parameter = layout.table->at(p);
    const int64_t rows = layout.used(p).rows();
    const bool is_shared = owners_of(layout.sharing(p), layout.mesh, layout.rank).count > 1;
    Unit& unit = parameter.layer < 0 ? outer : layers[static_cast<size_t>(parameter.layer)];
    const int copies = is_shared ? 3 : home == ShardHome::kHost ? 1 : 0;
    unit.packed += copies * packed_bytes(layout, p, rows);
    if (is_shared) unit.elements += rows * parameter.cols;
  }
  Unit largest;
  for (const Unit& unit : layers) {
    largest.packed = std::max(largest.packed, unit.packed);
    largest.elements = std::max(largest.elements, unit.elements);
  }
  const int64_t reduced = std::max(largest.elements, outer.elements);
  const int64_t gathered = 2 * largest.packed + outer.packed;
  if (!with_gradients) return gathered;
  return gathered + kFloatBytes * (2 * largest.elements + outer.elements + 2 * reduced);
}

// With expert ranks, rows come from all of them, as the router likes. Twice a rank's even part is
// planned for; a router that sends more than that to one rank takes more.
constexpr int64_t kExpertSkew = 2;

// What the tape keeps of a token in every layer, what a layer's backward pass adds, a dequantized
// matrix or a layer's experts of one kind, and the chunk of logits that the GPU's backend makes.
int64_t activation_bytes(const ModelConfig& model, const ParameterTable& table, const Mesh& mesh,
                         int64_t tokens) {
  constexpr int64_t kLogits = int64_t{64} << 20;  // of a chunk: core/ops_cuda/cuda_log_probs.cc
  const int64_t skew = mesh.expert > 1 ? kExpertSkew : 1;
  int64_t kept = 0;
  int64_t most = 0;
  for (const bool is_moe : model.layer_is_moe) {
    const int64_t attention = 4 * (model.hidden + model.q_rows()) + 5 * model.kv_rows();
    const int64_t routed = model.moe.top_k * (2 * model.hidden + 3 * model.moe.intermediate);
    const int64_t mlp = is_moe ? skew * routed : 3 * model.intermediate;
    kept += attention + mlp;
    most = std::max(most, attention + mlp);
  }
  int64_t panel = 0;
  for (const ParameterSpec& parameter : table.parameters) {
    panel = std::max(panel, parameter.num_elements());
  }
  if (model.num_moe_layers() > 0) {
    const int64_t experts = model.moe.num_experts / mesh.expert;
    panel = std::max(panel, experts * model.moe.intermediate * model.hidden);
  }
  return tokens * kBf16Bytes * (kept + 2 * most) + kBf16Bytes * panel + 3 * kFloatBytes * kLogits;
}

}  // namespace

TrainerMemory plan_trainer_memory(const TrainerConfig& config, const Mesh& mesh, int rank) {
  const ModelConfig model =
      parse_model_config(read_hf_config(config.model), (config.model / "config.json").string());
  const ParameterTable table = model_parameters(model);
  const ShardLayout train{&table, config.train_plan, mesh, rank};
  const ShardLayout serve{&table, config.serve_plan, mesh, rank};
  const ShardLayout reference{&table, plan_bf16(table), mesh, rank};
  int64_t elements = 0;
  for (int64_t p = 0; p < table.size(); ++p) elements += train.shard_elements(p);

  TrainerMemory memory;
  const int64_t arrays = config.optimizer.offload ? 1 : 4;  // gradients stay
  memory.state_bytes = arrays * kFloatBytes * elements;
  memory.packed_bytes = 2 * shard_bytes(train);
  const bool same_plan = config.train_plan.quantized == config.serve_plan.quantized;
  if (!same_plan) memory.packed_bytes += 2 * shard_bytes(serve);
  // One more where a step packs several times: what is served must not be packed into.
  if (config.optimizer.steps_per_rollout > 1) memory.packed_bytes += shard_bytes(serve);
  if (!config.calibrated.empty()) {
    if (!config.optimizer.offload) memory.state_bytes += scale_bytes(train);
    // Codes of held and of derived scales stand side by side.
    if (config.rescale_every > 0) memory.packed_bytes += shard_bytes(train);
  }
  // In every packing that is served.
  if (config.draft && rank == 0) memory.packed_bytes += 2 * draft_bytes(*config.draft);
  memory.ring_bytes = ring_bytes(train, true, ShardHome::kDevice);
  if (may_need_reference(config.algorithm)) {
    const ShardHome home = config.offload_reference ? ShardHome::kHost : ShardHome::kDevice;
    if (home == ShardHome::kDevice) memory.reference_bytes = shard_bytes(reference);
    memory.ring_bytes += ring_bytes(reference, false, home);  // one of its own
  }
  memory.activation_bytes = activation_bytes(model, table, mesh, config.max_tokens_per_device);
  return memory;
}

}  // namespace nibble
