#include "rollout/engine_setup.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/checkpoint/hf_directory.h"
#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "rollout/draft_model.h"
#include "rollout/engine/head_drafter.h"
#include "rollout/engine/lookup_drafter.h"
#include "rollout/engine_cuda/cuda_step_runner.h"
#include "weight_sync/layout.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

// The coordinator bounds what is under way in training; an evaluation comes as a whole.
constexpr int64_t kMostRequests = int64_t{1} << 20;

EngineConfig engine_config(const RolloutConfig& c, DeviceKind device) {
  EngineConfig config;
  config.max_running = c.max_running;
  config.max_step_tokens = c.max_step_tokens;
  config.kv_slots = c.kv_tokens;
  config.max_positions = c.max_positions;
  config.max_draft_tokens = c.max_draft_tokens;
  config.drafts_adapt = c.draft_adapts;
  config.max_requests = kMostRequests;
  config.mesh = engine_mesh(c);
  if (device == DeviceKind::kCpu) return config;
  // On a GPU there are logits for every sequence of a batch.
  config.max_logit_rows =
      std::max<int64_t>(config.max_logit_rows, std::min<int64_t>(config.max_running, 1024));
  // Guesses are checked in steps that CUDA graphs cover too.
  if (config.max_draft_tokens > 0) {
    config.max_logit_rows =
        std::max(config.max_logit_rows, std::min(config.max_step_tokens, c.graph_max_batch));
  }
  return config;
}

struct RankWeights {
  int64_t bytes = 0;   // of one version
  int64_t frozen = 0;  // of them
};
RankWeights rank_weights_of(const JointParameters& published, const Mesh& mesh, int rank) {
  const Manifest manifest = make_manifest(published.table, published.plan);
  auto slices = engine_slices(manifest, published.table, mesh, rank);
  RankWeights weights{slices_bytes(manifest, slices), 0};
  std::erase_if(slices, [&](const Slice& s) { return !manifest.at(s.tensor).is_frozen; });
  weights.frozen = slices_bytes(manifest, slices);
  return weights;
}

// Weights of both, buffers and cache of the engine, and of the draft model beside it.
struct EngineMemory {
  int64_t weights = 0;
  RunnerMemory runners;
};
EngineMemory memory_of(const ModelSpec& spec, const EngineConfig& config, int64_t weights,
                       const ModelSpec* draft) {
  EngineMemory memory{weights, cuda_engine_memory(spec, config)};
  if (draft == nullptr) return memory;
  const RunnerMemory own = cuda_engine_memory(*draft, cuda_draft_config(config, *draft));
  memory.runners.fixed_bytes += own.fixed_bytes;
  memory.runners.bytes_per_slot += own.bytes_per_slot;
  return memory;
}

// Sizes on a GPU: KV slots from what is left.
EngineConfig plan_gpu_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                             const ModelSpec* draft) {
  EngineConfig config = engine_config(options.rollout, DeviceKind::kCuda);
  // Without a trainer beside it: what is served, and a shadow.
  const SharedGpu gpu = options.shared_gpu
                            ? *options.shared_gpu
                            : SharedGpu{ops::free_cuda_bytes(), 0, options.in_place ? 1 : 2};
  const int rank = options.rank != nullptr ? options.rank->rank() : 0;
  const RankWeights own = rank_weights_of(job_parameters(options, spec), config.mesh, rank);
  const auto [weights, memory] =
      memory_of(spec, config, buffers_bytes(gpu.weight_buffers, own.bytes, own.frozen), draft);
  const int64_t own_part = gpu.free_bytes / options.gpu_sharers;
  const auto budget =
      static_cast<int64_t>(options.rollout.memory_fraction * static_cast<double>(own_part));
  const int64_t left = budget - gpu.trainer_bytes - weights - memory.fixed_bytes;
  const bool is_fixed = options.rollout.kv_tokens > 0;
  int64_t fitting = std::max<int64_t>(0, left / memory.bytes_per_slot);
  // One table of slots for all ranks.
  if (options.rank != nullptr) fitting = options.rank->least(fitting);
  if (is_fixed && options.rollout.kv_tokens > fitting) {
    fail(
        ErrorCode::kResourceExhausted,
        "rollout.kv_tokens = {} take {} MiB, but beside {} MiB for weights, {} MiB for buffers and "
        "{} MiB of the trainer, {} tokens fit into the {} MiB that rollout.memory_fraction = {} "
        "allows: lower kv_tokens (0: what is left), or raise memory_fraction",
        options.rollout.kv_tokens, options.rollout.kv_tokens * memory.bytes_per_slot >> 20,
        weights >> 20, memory.fixed_bytes >> 20, gpu.trainer_bytes >> 20, fitting, budget >> 20,
        options.rollout.memory_fraction);
  }
  if (!is_fixed) {
    config.kv_slots = std::min(fitting, config.max_running * options.rollout.max_positions);
  }
  if (config.kv_slots < options.rollout.max_positions) {
    fail(
        ErrorCode::kResourceExhausted,
        "the engine needs {} MiB for weights and {} MiB for buffers, the trainer beside it {} MiB; "
        "of the {} MiB that rollout.memory_fraction = {} allows, {} tokens of cache are left, less "
        "than rollout.max_positions = {}: raise memory_fraction, or lower max_step_tokens or "
        "max_positions",
        weights >> 20, memory.fixed_bytes >> 20, gpu.trainer_bytes >> 20, budget >> 20,
        options.rollout.memory_fraction, std::max<int64_t>(0, config.kv_slots),
        options.rollout.max_positions);
  }
  get_logger("engine")->info(
      "memory plan: trainer_mib={} weights_mib={} buffers_mib={} kv_tokens={} kv_mib={}{}",
      gpu.trainer_bytes >> 20, weights >> 20, memory.fixed_bytes >> 20, config.kv_slots,
      config.kv_slots * memory.bytes_per_slot >> 20,
      draft == nullptr ? "" : ", a draft model included");
  return config;
}

// The engine's: of several ranks this one, the first, tells the others.
StepRunnerFactory led_runner(const RolloutWorkerOptions& options,
                             std::vector<int64_t> graph_batches) {
  StepRunnerFactory own = engine_runner(options, graph_batches);
  if (options.rank == nullptr) return own;
  return options.rank->leader()->factory(std::move(own), std::move(graph_batches));
}

std::unique_ptr<Engine> make_cpu_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                        const ModelSpec* draft, const DraftHead* head,
                                        HeadExamples* examples) {
  const EngineConfig config = plan_engine(options, spec, nullptr);
  const kernels::Parallel& parallel = ops::torch_parallel();
  const StepRunnerFactory runner = led_runner(options, {});
  if (draft == nullptr && head == nullptr) return std::make_unique<Engine>(spec, config, runner);
  std::unique_ptr<WeightedDrafter> guesser;
  if (draft != nullptr) {
    guesser = make_cpu_drafter(*draft, config, parallel, ActivationType::kFloat32);
  } else {
    guesser = std::make_unique<HeadDrafter>(
        head->spec, spec, config,
        [&](const ModelSpec& own_spec, const EngineConfig& own) {
          return make_cpu_step_runner(own_spec, own, parallel);
        },
        HeadDrafter::Options{.examples = examples});
  }
  return std::make_unique<Engine>(spec, config, runner, std::make_unique<LookupDrafter>(),
                                  std::move(guesser));
}

std::unique_ptr<Engine> make_gpu_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                        const ModelSpec* draft) {
  ops::bind_cuda_thread();
  const RolloutConfig& rollout = options.rollout;
  const EngineConfig config = plan_engine(options, spec, draft);
  // A step has a token of each sequence, and guesses.
  const int64_t most = rollout.max_draft_tokens > 0 ? rollout.max_step_tokens : rollout.max_running;
  const StepRunnerFactory runner =
      led_runner(options, default_graph_batches(std::min(rollout.graph_max_batch, most)));
  if (draft == nullptr) return std::make_unique<Engine>(spec, config, runner);
  return std::make_unique<Engine>(spec, config, runner, std::make_unique<LookupDrafter>(),
                                  make_cuda_drafter(*draft, config, *options.gpu));
}

}  // namespace

ModelSpec model_spec(const std::filesystem::path& directory, const std::optional<LoraShape>& lora) {
  const HfDirectory model(directory);
  ModelConfig config = parse_model_config(model.config(), (directory / "config.json").string());
  config.lora = lora;
  return make_model_spec(config);
}

std::optional<ModelSpec> draft_model_spec(const RolloutWorkerOptions& options) {
  if (!options.draft) return std::nullopt;
  check_draft_model("rollout.draft_model", options.draft->directory, options.model);
  return make_model_spec(options.draft->config);
}

JointParameters job_parameters(const RolloutWorkerOptions& options, const ModelSpec& spec) {
  return join_parameters(spec.table, options.plan, options.draft ? &*options.draft : nullptr);
}

EngineConfig plan_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                         const ModelSpec* draft) {
  if (options.gpu != nullptr) return plan_gpu_engine(options, spec, draft);
  if (options.rollout.kv_tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.kv_tokens: 0 means what GPU memory is left; on a CPU name a number of tokens");
  }
  return engine_config(options.rollout, DeviceKind::kCpu);
}

EngineRankMemory engine_rank_memory(const RolloutConfig& rollout, const ModelSpec& spec,
                                    const JointParameters& published, DeviceKind device, int rank) {
  const EngineConfig config = engine_config(rollout, device);
  const RunnerMemory runner = device == DeviceKind::kCpu ? cpu_runner_memory(spec, config)
                                                         : cuda_engine_memory(spec, config);
  const RankWeights weights = rank_weights_of(published, config.mesh, rank);
  return {weights.bytes, weights.frozen, in_whole_blocks(config).kv_slots * runner.bytes_per_slot,
          runner.bytes_per_slot, runner.fixed_bytes};
}

StepRunnerFactory engine_runner(const RolloutWorkerOptions& options,
                                std::vector<int64_t> graph_batches) {
  const StepRanks ranks = options.rank != nullptr ? options.rank->step_ranks() : StepRanks();
  if (options.gpu != nullptr) {
    return cuda_step_runner(*options.gpu, {options.numerics, std::move(graph_batches), ranks});
  }
  return [ranks](const ModelSpec& spec, const EngineConfig& config) {
    return make_cpu_step_runner(spec, config, ops::torch_parallel(), ActivationType::kFloat32,
                                ranks);
  };
}

std::shared_ptr<const DraftHead> load_job_head(const RolloutWorkerOptions& options,
                                               const ModelSpec& spec) {
  if (options.rollout.draft_head.empty()) return nullptr;
  if (options.gpu != nullptr) {
    fail(ErrorCode::kUnimplemented,
         "rollout.draft_head: heads of training jobs guess on CPUs; remove it, or use "
         "rollout.draft_model");
  }
  return load_draft_head("rollout.draft_head", options.rollout.draft_head, spec);
}

std::unique_ptr<Engine> make_job_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                        const ModelSpec* draft,
                                        const std::shared_ptr<const DraftHead>& head,
                                        HeadCoach* coach) {
  std::unique_ptr<Engine> engine =
      options.gpu == nullptr
          ? make_cpu_engine(options, spec, draft, head.get(), coach ? &coach->examples() : nullptr)
          : make_gpu_engine(options, spec, draft);
  if (head) engine->set_draft_weights(head_weights(head), 1);
  return engine;
}

}  // namespace nibble
