#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/trainer/tiny_trainer.h"

namespace nibble {

/// PPO with a critic that starts from a tiny checkpoint; no KL, so that no reference is needed.
inline TrainerConfig gae_config(const std::string& name) {
  TrainerConfig config = make_config(name, Mode::kQat);
  config.algorithm.loss.kl_coef = 0.0;
  config.algorithm.reference = ReferenceMode::kNever;
  config.algorithm.advantage.type = AdvantageType::kGae;
  config.algorithm.advantage.lambda = 0.95;
  config.critic.emplace();
  config.critic->model = config.model;
  config.critic->lr = 3e-3;
  return config;
}

/// Rewards that a token's hidden state tells: whether the first token of the response is odd.
inline std::vector<SampleGroup> parity_groups(int count, uint32_t seed) {
  std::vector<SampleGroup> groups = make_groups(count, seed);
  for (SampleGroup& group : groups) {
    for (Sample& sample : group.samples) sample.reward = sample.response[0] % 2;
  }
  return groups;
}

}  // namespace nibble
