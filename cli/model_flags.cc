#include "cli/model_flags.h"

#include <CLI/CLI.hpp>

#include "core/base/fail.h"
#include "core/base/log.h"
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

std::unique_ptr<const ops::Backend> use_gpu(const char* logger, Numerics numerics) {
  const auto info = ops::use_cuda_device(0);
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
  command.add_option("--threads", flags.threads, "CPU threads; default: all");
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
  if (flags.threads > 0) ops::set_num_threads(flags.threads);
  const HfDirectory directory(flags.model);
  auto model = std::make_unique<LoadedModel>(spec_of(directory));
  model->weights = load_as_flags_say(directory, model->spec, flags);
  if (!is_on_gpu) return model;
  model->gpu = use_gpu("model", numerics(flags));
  model->weights = model->weights->to(DeviceKind::kCuda);
  return model;
}

}  // namespace nibble
