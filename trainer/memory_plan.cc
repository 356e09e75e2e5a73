#include "trainer/memory_plan.h"

#include "core/checkpoint/hf_directory.h"
#include "trainer/activation_plan.h"
#include "trainer/update_work.h"

namespace nibble {
namespace {

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kBf16Bytes = 2;

// A job's model as its ranks share it.
ModelConfig config_of(const std::filesystem::path& directory,
                      const std::optional<LoraShape>& lora = {}) {
  ModelConfig config =
      parse_model_config(read_hf_config(directory), (directory / "config.json").string());
  config.lora = lora;
  return config;
}

// A model, and its layout in BF16.
struct PlainModel {
  PlainModel(ModelConfig config, const Mesh& mesh, int rank)
      : model(std::move(config)),
        table(model_parameters(model)),
        layout{&table, plan_bf16(table), mesh, rank} {}
  PlainModel(const PlainModel&) = delete;  // the layout points to the table
  PlainModel& operator=(const PlainModel&) = delete;

  const ModelConfig model;
  const ParameterTable table;
  const ShardLayout layout;
};

struct SharedModel {
  SharedModel(const TrainerConfig& config, const Mesh& mesh, int rank)
      : model(config_of(config.model, config.lora)),
        table(model_parameters(model)),
        reference_table(model_parameters(config_of(config.model))),
        train{&table, config.train_plan, mesh, rank},
        serve{&table, config.serve_plan, mesh, rank},
        reference{&reference_table, plan_bf16(reference_table), mesh, rank} {}
  SharedModel(const SharedModel&) = delete;  // layouts point to the table
  SharedModel& operator=(const SharedModel&) = delete;

  const ModelConfig model;
  const ParameterTable table, reference_table;
  const ShardLayout train, serve, reference;
};

int64_t shard_bytes(const ShardLayout& layout) {
  int64_t bytes = 0;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    bytes += packed_bytes(layout, p, layout.shard(p).rows());
  }
  return bytes;
}

// Of one packing's own: what is frozen, all packings share.
int64_t trained_bytes(const ShardLayout& layout) {
  int64_t bytes = 0;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    bytes += packed_bytes(layout, p, layout.trained(p).rows());
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

// Masters, moments and gradients of a model that is trained.
void add_trained(const TrainerConfig& config, const ShardLayout& layout, TrainerMemory& memory) {
  int64_t elements = 0;
  for (int64_t p = 0; p < layout.table->size(); ++p) elements += layout.trained_elements(p);
  const bool is_bf16 = config.optimizer.state == MomentType::kBf16;
  memory.master_bytes += kFloatBytes * elements;
  memory.moment_bytes += 2 * (is_bf16 ? kBf16Bytes : kFloatBytes) * elements;
  memory.gradient_bytes += kFloatBytes * elements;
}

void add_state(const TrainerConfig& config, const SharedModel& shared, TrainerMemory& memory) {
  add_trained(config, shared.train, memory);
  if (!config.calibrated.empty()) memory.master_bytes += scale_bytes(shared.train);
  memory.state_home = !config.optimizer.mapped_in.empty() ? DeviceKind::kMappedFile
                      : config.optimizer.offload          ? offload_kind(memory.device)
                                                          : memory.device;
}

int64_t packing_bytes(const TrainerConfig& config, const SharedModel& shared) {
  const int64_t own = trained_bytes(shared.train);
  int64_t bytes = shard_bytes(shared.train) - own + 2 * own;
  if (config.train_plan.quantized != config.serve_plan.quantized) {
    bytes += 2 * shard_bytes(shared.serve);
  }
  // One more where a step packs several times: what is served must not be packed into.
  if (config.optimizer.steps_per_rollout > 1) bytes += trained_bytes(shared.serve);
  // Codes of held and of derived scales stand side by side.
  if (!config.calibrated.empty() && config.rescale_every > 0) bytes += shard_bytes(shared.train);
  return bytes;
}

// Of a model that is trained; passes of several are apart from each other.
void add_activations(const TrainerConfig& config, const ModelConfig& model, const Mesh& mesh,
                     TrainerMemory& memory) {
  constexpr int64_t kSkew = 2;
  // cuBLAS' of a handle and stream as PyTorch sizes it for compute capability 9; less before.
  constexpr int64_t kGpuWorkspace = int64_t{32} << 20;
  constexpr int64_t kGpuFragments = int64_t{224} << 20;
  const ModelConfig own = rank_config(model, mesh);
  const int64_t tokens = config.max_tokens_per_device;
  ActivationLoad load{tokens, tokens, config.recompute, memory.device};
  const int64_t peak = peak_activation_bytes(model, own, mesh, load);
  load.expert_skew = kSkew;
  int64_t margin = peak_activation_bytes(model, own, mesh, load) - peak;
  if (memory.device == DeviceKind::kCuda) {
    memory.workspace_bytes = kGpuWorkspace;
    margin += 2 * largest_layer_bytes(model, own, mesh, load) + kGpuFragments;
  }
  memory.activation_bytes = std::max(memory.activation_bytes, peak);
  memory.margin_bytes = std::max(memory.margin_bytes, margin);
}

int64_t replay_bytes(const TrainerConfig& config, const ModelConfig& model) {
  if (!config.algorithm.routing_replay) return 0;
  return kFloatBytes * config.max_tokens_per_device * model.moe.top_k * model.num_moe_layers();
}

// A frozen model, and a ring of its own.
void add_frozen(const TrainerConfig& config, const ShardLayout& layout, TrainerMemory& memory) {
  const ShardHome home = config.offload_reference ? ShardHome::kHost : ShardHome::kDevice;
  memory.reference_bytes += shard_bytes(layout);
  memory.ring_bytes += ring_bytes(layout, false, home);
}

int64_t forward_bytes(const TrainerConfig& config, const PlainModel& teacher, DeviceKind device) {
  const int64_t tokens = config.max_tokens_per_device;
  const Mesh& mesh = teacher.layout.mesh;
  return forward_activation_bytes(teacher.model, rank_config(teacher.model, mesh), mesh,
                                  {tokens, tokens, Recompute::kNone, device});
}

// Of the critic, which packs into the one packing that it has.
void add_critic(const TrainerConfig& config, const PlainModel& critic, TrainerMemory& memory) {
  add_trained(config, critic.layout, memory);
  memory.packed_bytes += shard_bytes(critic.layout);
  memory.ring_bytes += ring_bytes(critic.layout, true, ShardHome::kDevice);
  add_activations(config, critic.model, critic.layout.mesh, memory);
}

ModelConfig critic_config(const TrainerConfig& config) {
  return value_model(config_of(config.critic->model));
}

}  // namespace

int64_t TrainerMemory::bytes_in(DeviceKind kind) const {
  int64_t bytes = 0;
  if (kind == device) {
    bytes += gradient_bytes + packed_bytes + ring_bytes + activation_bytes + workspace_bytes;
  }
  if (kind == state_home) bytes += master_bytes + moment_bytes;
  if (kind == reference_home) bytes += reference_bytes;
  return bytes;
}

TrainerMemory plan_trainer_memory(const TrainerConfig& config, const Mesh& mesh, int rank,
                                  DeviceKind device) {
  const SharedModel shared(config, mesh, rank);
  TrainerMemory memory;
  memory.device = memory.reference_home = device;
  add_state(config, shared, memory);
  memory.packed_bytes = packing_bytes(config, shared);
  if (config.draft && rank == 0) memory.packed_bytes += draft_bytes(*config.draft);
  memory.ring_bytes = ring_bytes(shared.train, true, ShardHome::kDevice);
  if (config.offload_reference) memory.reference_home = offload_kind(device);
  if (may_need_reference(config.algorithm)) add_frozen(config, shared.reference, memory);
  add_activations(config, shared.model, mesh, memory);
  memory.activation_bytes += replay_bytes(config, shared.model);
  if (!config.teacher.empty()) {
    const PlainModel teacher(config_of(config.teacher), mesh, rank);
    add_frozen(config, teacher.layout, memory);
    memory.activation_bytes =
        std::max(memory.activation_bytes, forward_bytes(config, teacher, device));
  }
  if (config.critic) add_critic(config, {critic_config(config), mesh, rank}, memory);
  return memory;
}

GatherBytes plan_training_gathers(const TrainerConfig& config, const Mesh& mesh, int rank,
                                  int64_t micro_batches) {
  const SharedModel shared(config, mesh, rank);
  const int64_t updates = config.optimizer.steps_per_rollout;
  const bool is_exact =
      config.exact_rollout && config.train_plan.quantized == config.serve_plan.quantized;
  if (needs_old_pass(config.algorithm, updates, is_exact)) {
    return plan_gathers_with_old_pass(shared.train, updates, micro_batches);
  }
  const GatherBytes update = plan_gathers(shared.train, true).of(micro_batches);
  return {updates * update.quantized, updates * update.plain};
}

TrainerGathers plan_trainer_gathers(const TrainerConfig& config, const Mesh& mesh, int rank) {
  const SharedModel shared(config, mesh, rank);
  TrainerGathers gathers{plan_gathers(shared.train, true), {}, {}};
  if (may_need_reference(config.algorithm)) {
    gathers.reference = plan_gathers(shared.reference, false);
  }
  if (!config.teacher.empty()) {
    gathers.teacher = plan_gathers(PlainModel(config_of(config.teacher), mesh, rank).layout, false);
  }
  return gathers;
}

GatherBytes plan_critic_gathers(const TrainerConfig& config, const Mesh& mesh, int rank,
                                int64_t micro_batches) {
  if (!config.critic) return {};
  const PlainModel critic(critic_config(config), mesh, rank);
  return plan_gathers_with_old_pass(critic.layout, config.optimizer.steps_per_rollout,
                                    micro_batches);
}

}  // namespace nibble
