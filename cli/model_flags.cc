#include "cli/model_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>

#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/comm_cuda/nccl_group.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

ModelSpec spec_of(const HfDirectory& directory) {
  return make_model_spec(
      parse_model_config(directory.config(), (directory.path() / "config.json").string()));
}

bool takes_gpu(const std::string& device) {
  if (device == "cpu") return false;
  if (ops::num_cuda_devices() > 0) {
    ops::check_cuda_devices();
    return true;
  }
  if (device == "auto") return false;
  fail(ErrorCode::kInvalidArgument,
       "--device cuda, but this nibble sees no GPU ({}; `nibble doctor` says more): build with "
       "`cmake --preset cuda` on a machine with a GPU, or use --device cpu",
       ops::no_cuda_reason());
}

// Whether the model goes to a GPU.
bool wants_gpu(const ModelFlags& flags) {
  if (flags.dtype != "float32" || flags.device == "cpu") return takes_gpu(flags.device);
  if (flags.device == "auto") return false;
  fail(ErrorCode::kInvalidArgument,
       "--dtype float32 is a CPU's; on a GPU activations are bfloat16: leave --dtype out, or use "
       "--device cpu");
}

std::unique_ptr<const ops::Backend> use_gpu(const char* logger, Numerics numerics, int index = 0) {
  const auto info = ops::use_cuda_device(index);
  get_logger(logger)->info("gpu={} name='{}'", info.index, info.name);
  return ops::make_cuda_backend(numerics);
}

std::unique_ptr<ResidentWeights> load_as_flags_say(const HfDirectory& directory,
                                                   const ModelSpec& spec, const ModelFlags& flags) {
  if (flags.fake_quant_group == 0) return load_weights(directory, spec.table);
  const QuantTargets targets =
      flags.targets.empty() ? default_targets(spec.config) : parse_quant_targets(flags.targets);
  const auto plan = plan_quantization(spec.table, targets, 4, flags.fake_quant_group);
  if (!plan.any()) {
    fail(ErrorCode::kInvalidArgument,
         "--fake-quant {} finds nothing of --targets {} in '{}'; use --targets linear",
         flags.fake_quant_group, flags.targets, flags.model.string());
  }
  return load_weights_quantized(directory, spec.table, plan, ops::torch_parallel());
}

constexpr int kMaxRanks = 64;
constexpr auto kMeetTimeout = std::chrono::minutes(5);

// Meets the other ranks of this process's model.
std::unique_ptr<ModelRanks> join_ranks(const ModelFlags& flags, const ModelSpec& spec,
                                       bool is_on_gpu) {
  const int number = flags.rank->number;
  const Rendezvous at{"127.0.0.1", flags.rank->port, "engine", kMeetTimeout};
  return std::unique_ptr<ModelRanks>(
      new ModelRanks{rank_table(spec.table, flags.mesh(), number),
                     EngineRank(at, flags.mesh(), number, is_on_gpu)});
}

std::unique_ptr<ResidentWeights> load_part(const HfDirectory& directory, const ModelSpec& spec,
                                           const ModelFlags& flags, const ModelRanks& ranks) {
  const int number = flags.rank->number;
  if (flags.fake_quant_group == 0) {
    return load_rank_weights(directory, spec.table, ranks.held, flags.mesh(), number);
  }
  return rank_weights(*load_as_flags_say(directory, spec, flags), spec.table, ranks.held,
                      flags.mesh(), number);
}

// Several ranks on one GPU find each other over sockets.
int gpu_of_rank(const ModelFlags& flags) {
  if (!flags.rank) return 0;
  const int gpus = ops::num_cuda_devices();
  if (gpus < flags.tensor) share_gpu_between_nccl_ranks(flags.rank->number);
  return flags.rank->number % gpus;
}

}  // namespace

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command.add_option("--model", flags.model, "Hugging Face directory, BF16 or INT4")->required();
  command.add_option("--device", flags.device, "cpu, cuda, or auto: a GPU where there is one")
      ->capture_default_str();
  command.add_option("--dtype", flags.dtype,
                     "activations: float32 (default on a CPU), or bfloat16 (on a GPU; on a CPU "
                     "rounded after every operation)");
  command
      .add_option("--numerics", flags.numerics,
                  "on a GPU: exact (trainer and rollout agree to the bit) or fast; a CPU is exact")
      ->capture_default_str();
  command.add_option("--fake-quant", flags.fake_quant_group,
                     "round weights to INT4 in groups of this many, as a trainer with QAT does");
  command.add_option("--targets", flags.targets,
                     "what --fake-quant takes: experts, mlp or linear; default as in convert");
  command.add_option("--threads", flags.threads, "CPU threads of a process; default: all");
  command
      .add_option("--tensor", flags.tensor,
                  "processes that compute together, each with its heads and rows; on GPUs one each")
      ->capture_default_str();
  command
      .add_option("--expert", flags.expert,
                  "1: each of them has all experts of a layer; as many as --tensor: its part")
      ->capture_default_str();
}

void check_model_flags(const ModelFlags& flags) {
  if (flags.device != "auto" && flags.device != "cpu" && flags.device != "cuda") {
    fail(ErrorCode::kInvalidArgument, "--device '{}' is unknown; use auto, cpu or cuda",
         flags.device);
  }
  if (flags.numerics != "exact" && flags.numerics != "fast") {
    fail(ErrorCode::kInvalidArgument, "--numerics '{}' is unknown; use exact or fast",
         flags.numerics);
  }
  if (!flags.dtype.empty() && flags.dtype != "float32" && flags.dtype != "bfloat16") {
    fail(ErrorCode::kInvalidArgument, "--dtype '{}' is unknown; use float32 or bfloat16",
         flags.dtype);
  }
  const int64_t group = flags.fake_quant_group;
  if (group != 0 && group != 32 && group != 64 && group != 128) {
    fail(ErrorCode::kInvalidArgument, "--fake-quant is {}; it must be 32, 64 or 128 (0: off)",
         group);
  }
  if (group == 0 && !flags.targets.empty()) {
    fail(ErrorCode::kInvalidArgument, "--targets says what --fake-quant takes; give both");
  }
  if (flags.tensor < 1 || flags.tensor > kMaxRanks) {
    fail(ErrorCode::kInvalidArgument, "--tensor is {}; it must be from 1 to {}", flags.tensor,
         kMaxRanks);
  }
  if (flags.expert != 1 && flags.expert != flags.tensor) {
    fail(ErrorCode::kInvalidArgument, "--expert is {}; it must be 1 or --tensor, which is {}",
         flags.expert, flags.tensor);
  }
  constexpr int kMaxThreads = 1024;
  if (flags.threads < 0 || flags.threads > kMaxThreads) {
    fail(ErrorCode::kInvalidArgument, "--threads is {}; it must be from 1 to {} (0: all)",
         flags.threads, kMaxThreads);
  }
}

ActivationType activation_type(const ModelFlags& flags) {
  return flags.dtype == "bfloat16" ? ActivationType::kBfloat16 : ActivationType::kFloat32;
}

Numerics numerics(const ModelFlags& flags) {
  return flags.numerics == "fast" ? Numerics::kFast : Numerics::kExact;
}

std::unique_ptr<const ops::Backend> open_gpu(const std::string& device, Numerics numerics) {
  return takes_gpu(device) ? use_gpu("device", numerics) : nullptr;
}

std::unique_ptr<LoadedModel> load_model(const ModelFlags& flags) {
  check_model_flags(flags);
  const bool is_on_gpu = wants_gpu(flags);
  if (flags.threads > 0) {
    ops::set_num_threads(flags.threads);
  } else if (flags.has_ranks()) {
    ops::set_num_threads(std::max(1, ops::num_threads() / flags.tensor));
  }
  const HfDirectory directory(flags.model);
  auto model = std::make_unique<LoadedModel>(spec_of(directory));
  if (flags.has_ranks()) {
    NIBBLE_CHECK(flags.rank.has_value(), "a rank without a number");
    if (const auto problem = mesh_problem(model->spec.config, flags.mesh())) {
      fail(ErrorCode::kInvalidArgument, "--tensor {} --expert {}: {}", flags.tensor, flags.expert,
           *problem);
    }
  }
  if (is_on_gpu) model->gpu = use_gpu("model", numerics(flags), gpu_of_rank(flags));
  if (flags.has_ranks()) model->ranks = join_ranks(flags, model->spec, is_on_gpu);
  model->weights = model->ranks ? load_part(directory, model->spec, flags, *model->ranks)
                                : load_as_flags_say(directory, model->spec, flags);
  if (is_on_gpu) model->weights = model->weights->to(DeviceKind::kCuda);
  return model;
}

}  // namespace nibble
