#pragma once

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "core/checkpoint/hf_directory.h"
#include "tests/core/models/test_root.h"
#include "trainer/trainer.h"

// Trainers on the tiny checkpoints of tests/oracles, and samples to train them on.

namespace nibble {

enum class Mode { kQat, kBf16 };

inline TrainerConfig make_config(const std::string& name, Mode mode) {
  TrainerConfig config;
  config.model = test_root() / "tests/oracles/models" / name / "bf16";
  config.reference = config.model;
  const HfDirectory int4(test_root() / "tests/oracles/models" / name / "int4_sym7");
  const ParameterTable table = model_parameters(parse_model_config(int4.config(), name));
  config.train_plan = mode == Mode::kQat ? checkpoint_plan(int4, table) : plan_bf16(table);
  config.serve_plan = mode == Mode::kBf16 ? plan_bf16(table) : checkpoint_plan(int4, table);
  config.optimizer.lr = 1e-3;
  config.optimizer.clip_norm = 1.0;
  config.algorithm.loss.kl_coef = 0.01;
  config.max_tokens_per_device = 64;
  config.max_positions = 256;
  return config;
}

// Random groups whose log-probabilities are those of `trainer`'s weights, so that the gap is 0.
inline std::vector<SampleGroup> make_groups(int count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<SampleGroup> groups;
  for (int g = 0; g < count; ++g) {
    SampleGroup group;
    group.prompt_id = static_cast<uint64_t>(g);
    for (int i = 0; i < 3 + g % 4; ++i)
      group.prompt.push_back(static_cast<int32_t>(engine() % 480));
    for (int s = 0; s < 4; ++s) {
      Sample sample;
      sample.sample_index = static_cast<uint32_t>(s);
      for (int i = 0; i < 1 + s * 2; ++i) {
        sample.response.push_back(static_cast<int32_t>(engine() % 480));
        sample.log_probs.push_back(-5.0f);
      }
      sample.reward = static_cast<double>(engine() % 2);
      group.samples.push_back(sample);
    }
    groups.push_back(group);
  }
  return groups;
}

// Neighbouring experts at random: not what the model would choose.
inline void set_routes(std::vector<SampleGroup>& groups, const ModelConfig& config, uint32_t seed) {
  std::mt19937 engine(seed);
  const RouteShape shape{config.num_moe_layers(), config.moe.top_k, 1};
  const auto choices = [&](size_t tokens) {
    std::vector<uint8_t> routes;
    for (int64_t i = 0; i < static_cast<int64_t>(tokens) * shape.layers; ++i) {
      const auto first = static_cast<int64_t>(engine());
      for (int64_t j = 0; j < shape.top_k; ++j) {
        routes.push_back(static_cast<uint8_t>((first + j) % config.moe.num_experts));
      }
    }
    return routes;
  };
  for (SampleGroup& group : groups) {
    group.route_shape = shape;
    group.prompt_routes = choices(group.prompt.size());
    for (Sample& sample : group.samples) sample.routes = choices(sample.response.size() - 1);
  }
}

inline void fill_log_probs(Trainer& trainer, std::vector<SampleGroup>& groups) {
  for (SampleGroup& group : groups) {
    for (Sample& sample : group.samples) {
      std::vector<int32_t> ids = group.prompt;
      ids.insert(ids.end(), sample.response.begin(), sample.response.end());
      const auto all = trainer.log_probs(ids);
      sample.log_probs.assign(all.end() - static_cast<std::ptrdiff_t>(sample.response.size()),
                              all.end());
    }
  }
}

}  // namespace nibble
