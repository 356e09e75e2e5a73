#pragma once

#include <memory>

#include "rollout/reward/reward_process.h"
#include "rollout/reward_config.h"

namespace CLI {
class App;
}

namespace nibble {

/// Declares `type_flag` (e.g. "--type"), the limits and where remote rewards are. `flags` outlives
/// the parse.
void add_reward_flags(CLI::App& command, const char* type_flag, RewardConfig& flags);

/// Throws Error{kInvalidArgument} for an unknown type or a limit out of range.
void check_reward_flags(const RewardConfig& flags);

/// Starts our own binary as a limited reward worker. Throws Error as check_reward_flags.
std::unique_ptr<RewardProcess> start_rewards(const RewardConfig& flags);

}  // namespace nibble
