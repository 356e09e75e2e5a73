#pragma once

#include <string>

#include "tests/trainer/tiny_trainer.h"

namespace nibble {

constexpr LoraShape kTestLora = {32, 48.0, LoraTargets::kLinear};

/// A job that trains adapters beside a tiny checkpoint: `variant` of tests/oracles, bf16 or INT4.
inline TrainerConfig lora_config(const std::string& name, const std::string& variant,
                                 const LoraShape& shape = kTestLora) {
  TrainerConfig config = make_config(name, Mode::kBf16);
  config.lora = shape;
  config.base = config.model.parent_path() / variant;
  const HfDirectory base(config.base);
  ModelConfig model = parse_model_config(base.config(), name);
  model.lora = shape;
  config.train_plan = config.serve_plan = checkpoint_plan(base, model_parameters(model));
  // PEFT's users train adapters at some ten times the rate of weights.
  config.optimizer.lr = 1e-2;
  config.seed = 3;
  return config;
}

}  // namespace nibble
