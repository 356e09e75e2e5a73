#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trainer/batching.h"
#include "trainer/config/train_config.h"

namespace nibble {

/// The reward that a sample is learned from: its own, and DAPO's penalty of long responses where
/// there is one (algorithm.overlong_buffer; overlong.h).
///   max_new_tokens  longest response
double learned_reward(const Sample& sample, const AlgorithmConfig& config, int64_t max_new_tokens);

/// Groups with the advantages of their samples (group_advantages; of token-level types their
/// scores), and which of them the loss leaves out: with algorithm.mask_truncated those that were
/// cut off. Their rewards count in the group's mean all the same. `groups` must outlive the result.
std::vector<ScoredGroup> score_groups(std::span<const SampleGroup> groups,
                                      const AlgorithmConfig& config, int64_t max_new_tokens);

}  // namespace nibble
