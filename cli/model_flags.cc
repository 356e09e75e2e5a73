#include "cli/model_flags.h"

#include <CLI/CLI.hpp>

#include "core/base/fail.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

ModelSpec spec_of(const HfDirectory& directory) {
  return make_model_spec(
      parse_model_config(directory.config(), (directory.path() / "config.json").string()));
}

}  // namespace

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command.add_option("--model", flags.model, "Hugging Face directory, BF16 or INT4")->required();
  command
      .add_option("--dtype", flags.dtype,
                  "activations: float32, or bfloat16 (rounded after every operation)")
      ->capture_default_str();
  command.add_option("--fake-quant", flags.fake_quant_group,
                     "round weights to INT4 in groups of this many, as a trainer with QAT does");
  command.add_option("--targets", flags.targets,
                     "what --fake-quant takes: experts, mlp or linear; default as in convert");
  command.add_option("--threads", flags.threads, "CPU threads; default: all");
}

void check_model_flags(const ModelFlags& flags) {
  if (flags.dtype != "float32" && flags.dtype != "bfloat16") {
    fail(ErrorCode::kInvalidArgument, "--dtype '{}' is unknown; use float32 or bfloat16",
         flags.dtype);
  }
  const int64_t group = flags.fake_quant_group;
  if (group != 0 && group != 32 && group != 64 && group != 128) {
    fail(ErrorCode::kInvalidArgument, "--fake-quant is {}; it must be 32, 64 or 128", group);
  }
  if (group == 0 && !flags.targets.empty()) {
    fail(ErrorCode::kInvalidArgument, "--targets says what --fake-quant takes; give both");
  }
  constexpr int kMaxThreads = 1024;
  if (flags.threads < 0 || flags.threads > kMaxThreads) {
    fail(ErrorCode::kInvalidArgument, "--threads is {}; it must be from 1 to {}", flags.threads,
         kMaxThreads);
  }
}

ActivationType activation_type(const ModelFlags& flags) {
  return flags.dtype == "bfloat16" ? ActivationType::kBfloat16 : ActivationType::kFloat32;
}

std::unique_ptr<LoadedModel> load_model(const ModelFlags& flags) {
  check_model_flags(flags);
  if (flags.threads > 0) ops::set_num_threads(flags.threads);
  const HfDirectory directory(flags.model);
  auto model = std::make_unique<LoadedModel>(spec_of(directory));
  const ModelSpec& spec = model->spec;
  if (flags.fake_quant_group == 0) {
    model->weights = load_weights(directory, spec.table);
    return model;
  }
  const QuantTargets targets =
      flags.targets.empty() ? default_targets(spec.config) : parse_quant_targets(flags.targets);
  const auto plan = plan_quantization(spec.table, targets, 4, flags.fake_quant_group);
  if (!plan.any()) {
    fail(ErrorCode::kInvalidArgument,
         "--fake-quant {} finds nothing of --targets {} in '{}'; use --targets linear",
         flags.fake_quant_group, flags.targets, flags.model.string());
  }
  model->weights = load_weights_quantized(directory, spec.table, plan, ops::torch_parallel());
  return model;
}

}  // namespace nibble
