#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/base/task_thread.h"
#include "core/tokenizer/tokenizer.h"
#include "rollout/reward/reward_process.h"
#include "rollout/reward_config.h"
#include "rollout/rollout_group.h"

namespace nibble {

/// Scores drawn groups beside the engine, on the thread that the reward process belongs to. Any
/// thread may call.
class GroupScorer {
 public:
  /// Borrows the tokenizer. `command`: nibble-reward and its argument. Throws as RewardProcess.
  GroupScorer(const RewardConfig& config, std::vector<std::string> command,
              const Tokenizer& tokenizer);
  ~GroupScorer();

  /// Reports, as training and the coordinator see them. A sample that cannot be scored, or that a
  /// swap of weights has ended, has an error and no reward.
  std::vector<GroupReport> score(std::vector<DrawnGroup> groups);

 private:
  const Tokenizer& tokenizer_;
  std::unique_ptr<RewardProcess> rewards_;  // lives on thread_
  TaskThread thread_;                       // last member
};

}  // namespace nibble
