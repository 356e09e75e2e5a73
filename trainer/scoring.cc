#include "trainer/scoring.h"

#include "trainer/algo/overlong.h"

namespace nibble {

double learned_reward(const Sample& sample, const AlgorithmConfig& config, int64_t max_new_tokens) {
  if (config.overlong_buffer == 0) return sample.reward;
  return sample.reward + config.overlong_penalty * overlong_penalty(std::ssize(sample.response),
                                                                    max_new_tokens,
                                                                    config.overlong_buffer);
}

std::vector<ScoredGroup> score_groups(std::span<const SampleGroup> groups,
                                      const AlgorithmConfig& config, int64_t max_new_tokens) {
  std::vector<ScoredGroup> scored;
  for (const SampleGroup& group : groups) {
    std::vector<double> rewards;
    ScoredGroup out{&group, std::vector<double>(group.samples.size()), {}};
    for (const Sample& sample : group.samples) {
      rewards.push_back(learned_reward(sample, config, max_new_tokens));
      const bool is_masked = config.mask_truncated && sample.finish_reason == "length";
      out.is_masked.push_back(is_masked ? 1 : 0);
    }
    group_advantages(rewards, config.advantage, out.advantages);
    scored.push_back(std::move(out));
  }
  return scored;
}

}  // namespace nibble
