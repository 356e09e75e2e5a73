#include "cli/memory_report.h"

#include <fmt/format.h>

#include <optional>

#include "cli/job_kind.h"
#include "cli/job_plans.h"
#include "cli/run_config.h"
#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/device/cuda_device.h"
#include "rollout/engine_setup.h"
#include "trainer/memory_plan.h"

namespace nibble {
namespace {

// What a rank gathers in one step of the loop.
struct StepGathers {
  GatherBytes training;
  GatherBytes reference;
  GatherBytes critic;
  int64_t whole() const {
    return training.quantized + training.plain + reference.plain + critic.plain;
  }
};

struct MemoryReport {
  DeviceKind device = DeviceKind::kCpu;
  std::vector<TrainerMemory> trainers;  // by rank
  std::vector<StepGathers> gathers;
  int64_t num_engines = 0;
  int64_t weight_buffers = 0;               // of an engine: one version, or a shadow beside it
  std::vector<EngineRankMemory> engines{};  // of one engine, by rank
};

DeviceKind planned_device(const MemoryReportFlags& flags, const RunConfig& config) {
  if (flags.device == "cpu") return DeviceKind::kCpu;
  if (flags.device == "cuda") return DeviceKind::kCuda;
  if (!flags.device.empty()) {
    fail(ErrorCode::kInvalidArgument, "--device is '{}'; it must be cpu or cuda", flags.device);
  }
  const bool on_gpu = config.cluster.device == DeviceChoice::kCuda ||
                      (config.cluster.device == DeviceChoice::kAuto && ops::num_cuda_devices() > 0);
  return on_gpu ? DeviceKind::kCuda : DeviceKind::kCpu;
}

StepGathers step_gathers(const TrainerConfig& config, const Mesh& mesh, int rank,
                         int64_t micro_batches) {
  const TrainerGathers plan = plan_trainer_gathers(config, mesh, rank);
  const int64_t updates = config.optimizer.steps_per_rollout;
  StepGathers step;
  step.training = plan_training_gathers(config, mesh, rank, micro_batches);
  // Frozen models stay as they are, and so does what their rings have of them.
  step.reference.plain =
      updates * micro_batches * (plan.reference.further.plain + plan.teacher.further.plain);
  step.critic = plan_critic_gathers(config, mesh, rank, micro_batches);
  return step;
}

void plan_engines(const RunConfig& config, MemoryReport& plan) {
  if (is_supervised(config)) return;
  const Mesh mesh = engine_mesh(config.rollout);
  const bool is_colocated = config.cluster.placement == Placement::kColocated;
  const int64_t workers = is_colocated ? config.cluster.trainers : config.cluster.rollout_workers;
  plan.num_engines = workers / mesh.world;
  // One rank's packing is what an engine of the same process serves.
  plan.weight_buffers = is_colocated && config.cluster.trainers == 1 ? 0
                        : config.weight_sync.in_place                ? 1
                                                                     : 2;
  const ModelSpec spec = model_spec(config.model.path, config.lora.shape());
  const JobPlans plans = job_plans(config);
  const JointParameters published =
      join_parameters(spec.table, plans.serve, plans.draft ? &*plans.draft : nullptr);
  for (int rank = 0; rank < mesh.world; ++rank) {
    plan.engines.push_back(engine_rank_memory(config.rollout, spec, published, plan.device, rank));
  }
}

MemoryReport make_plan(const RunConfig& config, const MemoryReportFlags& flags) {
  if (flags.micro_batches < 1) {
    fail(ErrorCode::kInvalidArgument, "--micro-batches is {}; it must be at least 1",
         flags.micro_batches);
  }
  MemoryReport plan;
  plan.device = planned_device(flags, config);
  const TrainerConfig trainer = trainer_config(config);
  const Mesh mesh = trainer_mesh(config);
  for (int rank = 0; rank < mesh.world; ++rank) {
    plan.trainers.push_back(plan_trainer_memory(trainer, mesh, rank, plan.device));
    plan.gathers.push_back(step_gathers(trainer, mesh, rank, flags.micro_batches));
  }
  plan_engines(config, plan);
  return plan;
}

const char* home_name(DeviceKind home) {
  switch (home) {
    case DeviceKind::kCpu:
      return "ram";
    case DeviceKind::kCuda:
      return "gpu";
    case DeviceKind::kCudaHost:
      return "page_locked";
    case DeviceKind::kMappedFile:
      return "mapped_file";
  }
  return "";
}

OrderedJson gathers_json(const StepGathers& step) {
  return {{"quantized_bytes", step.training.quantized},
          {"rest_bytes", step.training.plain},
          {"reference_bytes", step.reference.plain},
          {"critic_bytes", step.critic.plain},
          {"whole_bytes", step.whole()}};
}

OrderedJson trainer_json(const TrainerMemory& memory, const StepGathers& step, size_t rank) {
  return {{"rank", rank},
          {"masters_bytes", memory.master_bytes},
          {"moments_bytes", memory.moment_bytes},
          {"state_in", home_name(memory.state_home)},
          {"gradients_bytes", memory.gradient_bytes},
          {"packed_bytes", memory.packed_bytes},
          {"reference_bytes", memory.reference_bytes},
          {"reference_in", home_name(memory.reference_home)},
          {"ring_bytes", memory.ring_bytes},
          {"activations_bytes", memory.activation_bytes},
          {"workspace_bytes", memory.workspace_bytes},
          {"total_bytes", memory.bytes_in(memory.device)},
          {"checkpoint_bytes", memory.checkpoint_bytes()},
          {"margin_bytes", memory.margin_bytes},
          {"gathered_per_step", gathers_json(step)}};
}

OrderedJson engine_json(const MemoryReport& plan, size_t rank) {
  const EngineRankMemory& memory = plan.engines[rank];
  const int64_t weights =
      buffers_bytes(plan.weight_buffers, memory.weight_bytes, memory.frozen_bytes);
  return {{"rank", rank},
          {"weight_buffers", plan.weight_buffers},
          {"weights_bytes", weights},
          {"kv_cache_bytes", memory.kv_bytes},
          {"kv_bytes_per_token", memory.kv_bytes_per_token},
          {"buffers_bytes", memory.buffer_bytes},
          {"total_bytes", weights + memory.kv_bytes + memory.buffer_bytes}};
}

std::string plan_json(const MemoryReport& plan, const MemoryReportFlags& flags) {
  OrderedJson trainers = OrderedJson::array();
  for (size_t rank = 0; rank < plan.trainers.size(); ++rank) {
    trainers.push_back(trainer_json(plan.trainers[rank], plan.gathers[rank], rank));
  }
  OrderedJson engines = OrderedJson::array();
  for (size_t rank = 0; rank < plan.engines.size(); ++rank) {
    engines.push_back(engine_json(plan, rank));
  }
  const OrderedJson root = {{"device", home_name(plan.device)},
                            {"micro_batches", flags.micro_batches},
                            {"trainers", trainers},
                            {"engines", plan.num_engines},
                            {"engine_ranks", engines}};
  return root.dump();
}

double megabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e6; }

// Ranks of one job differ by a row here and there: the first ones tell.
constexpr size_t kMostRanksShown = 16;

void print_more(size_t count) {
  if (count > kMostRanksShown)
    fmt::print("  ... and {} more ranks; --json has them\n", count - kMostRanksShown);
}

void print_trainers(const MemoryReport& plan) {
  const TrainerMemory& first = plan.trainers.front();
  fmt::print("Trainer ranks, MB ({}; masters and moments in {}, reference in {}):\n",
             home_name(plan.device), home_name(first.state_home), home_name(first.reference_home));
  fmt::print("  {:>4} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12} {:>11}\n", "rank", "masters",
             "moments", "gradients", "packed", "reference", "ring", "activations", "total");
  for (size_t rank = 0; rank < std::min(plan.trainers.size(), kMostRanksShown); ++rank) {
    const TrainerMemory& memory = plan.trainers[rank];
    fmt::print(
        "  {:>4} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>12.2f} {:>11.2f}\n",
        rank, megabytes(memory.master_bytes), megabytes(memory.moment_bytes),
        megabytes(memory.gradient_bytes), megabytes(memory.packed_bytes),
        megabytes(memory.reference_bytes), megabytes(memory.ring_bytes),
        megabytes(memory.activation_bytes), megabytes(memory.bytes_in(memory.device)));
  }
  print_more(plan.trainers.size());
  if (first.workspace_bytes > 0) {
    fmt::print("  {:.2f} MB of each total are the workspace of matrix products\n",
               megabytes(first.workspace_bytes));
  }
  fmt::print("  {:.2f} MB of {} more while a checkpoint is written\n",
             megabytes(first.checkpoint_bytes()),
             first.state_home == DeviceKind::kMappedFile ? "mapped files" : "host memory");
  if (first.margin_bytes > 0) {
    fmt::print("  up to {:.2f} MB more: {}\n", megabytes(first.margin_bytes),
               plan.device == DeviceKind::kCpu
                   ? "for an expert rank that gets twice its even part of the tokens"
                   : "for libraries, fragments, and experts that get twice their part");
  }
}

void print_gathers(const MemoryReport& plan, const MemoryReportFlags& flags) {
  fmt::print("Received by all-gathers in a step of {} micro-batch(es) an update, MB:\n",
             flags.micro_batches);
  fmt::print("  {:>4} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "rank", "quantized", "rest",
             "reference", "critic", "whole");
  for (size_t rank = 0; rank < std::min(plan.gathers.size(), kMostRanksShown); ++rank) {
    const StepGathers& step = plan.gathers[rank];
    fmt::print("  {:>4} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f}\n", rank,
               megabytes(step.training.quantized), megabytes(step.training.plain),
               megabytes(step.reference.plain), megabytes(step.critic.plain),
               megabytes(step.whole()));
  }
  print_more(plan.gathers.size());
}

void print_engines(const MemoryReport& plan) {
  if (plan.engines.empty()) return;
  fmt::print("Rollout engines: {} of {} rank(s), MB:\n", plan.num_engines, plan.engines.size());
  fmt::print("  {:>4} {:>10} {:>10} {:>10} {:>11}\n", "rank", "weights", "KV cache", "buffers",
             "total");
  for (size_t rank = 0; rank < std::min(plan.engines.size(), kMostRanksShown); ++rank) {
    const EngineRankMemory& memory = plan.engines[rank];
    const int64_t weights =
        buffers_bytes(plan.weight_buffers, memory.weight_bytes, memory.frozen_bytes);
    fmt::print("  {:>4} {:>10.2f} {:>10.2f} {:>10.2f} {:>11.2f}\n", rank, megabytes(weights),
               megabytes(memory.kv_bytes), megabytes(memory.buffer_bytes),
               megabytes(weights + memory.kv_bytes + memory.buffer_bytes));
  }
  print_more(plan.engines.size());
  if (plan.engines.front().kv_bytes == 0) {
    fmt::print("  the KV cache takes what is left, {} bytes a token\n",
               plan.engines.front().kv_bytes_per_token);
  }
}

}  // namespace

void run_memory_report(const MemoryReportFlags& flags) {
  const RunConfig config = load_run_config(flags.config, flags.overrides, read_env());
  const MemoryReport plan = make_plan(config, flags);
  if (flags.json) {
    fmt::print("{}\n", plan_json(plan, flags));
    return;
  }
  print_trainers(plan);
  print_gathers(plan, flags);
  print_engines(plan);
}

}  // namespace nibble
