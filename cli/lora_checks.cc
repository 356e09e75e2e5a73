#include "cli/lora_checks.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {

void check_lora(const RunConfig& c, const ConfigSource& source) {
  if (c.lora.rank == 0) {
    if (!c.lora.alpha) return;
    fail(ErrorCode::kInvalidArgument,
         "lora.alpha is {} ({}), but lora.rank is 0, which trains all weights: remove it, or set "
         "lora.rank",
         *c.lora.alpha, source.where("lora.alpha"));
  }
  if (c.lora.rank % kLoraRankMultiple != 0) {
    fail(ErrorCode::kInvalidArgument, "lora.rank is {} ({}); it must be a multiple of {} (0: off)",
         c.lora.rank, source.where("lora.rank"), kLoraRankMultiple);
  }
  const auto refuse = [&](const char* key, const char* why) {
    fail(ErrorCode::kInvalidArgument, "lora.rank is {} ({}), but {} ({}) {}", c.lora.rank,
         source.where("lora.rank"), key, source.where(key), why);
  };
  if (c.qat.start == QatStart::kCalibrated) {
    refuse(
        "qat.start",
        "is calibrated, which holds scales that weights are trained in: adapters leave codes and "
        "scales of model.int4 as they are without it, remove it");
  }
  if (c.model.init == ModelInit::kRandom) {
    refuse("model.init",
           "is random: adapters beside random weights that stay as they are learn nothing; set "
           "lora.rank: 0, or model.init: pretrained");
  }
}

void check_lora_plans(const RunConfig& c, const ConfigSource& source, const JobPlans& plans) {
  if (c.lora.rank == 0) return;
  if (plans.train.quantized != plans.serve.quantized) {
    fail(ErrorCode::kInvalidArgument,
         "lora.rank is {} ({}), but qat.enabled ({}) is false and rollout.quantize ({}) true: "
         "adapters are trained beside the weights that are served; set both to true for INT4, or "
         "both to false for BF16",
         c.lora.rank, source.where("lora.rank"), source.where("qat.enabled"),
         source.where("rollout.quantize"));
  }
  ModelConfig model = model_of(c, c.model.path);
  model.lora = c.lora.shape();
  const ParameterTable table = model_parameters(model);
  const bool has_any = std::any_of(table.parameters.begin(), table.parameters.end(),
                                   [](const ParameterSpec& p) { return !p.is_frozen; });
  if (has_any) return;
  fail(ErrorCode::kInvalidArgument,
       "lora.targets is mlp ({}), but all MLPs of '{}' are experts, which get no adapters: use "
       "attention",
       source.where("lora.targets"), c.model.path.string());
}

}  // namespace nibble
