#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "rollout/reward/reward_process.h"

namespace CLI {
class App;
}

namespace nibble {

/// Flags of the commands that score responses, besides the type.
struct RewardFlags {
  std::string type;
  int64_t timeout_ms = 5'000;
  int64_t memory_mb = 512;
};

/// Declares `type_flag` (e.g. "--type") and the limits. `flags` outlives the parse.
void add_reward_flags(CLI::App& command, const char* type_flag, RewardFlags& flags);

/// Throws Error{kInvalidArgument} for an unknown type or a limit out of range.
void check_reward_flags(const RewardFlags& flags);

/// Starts our own binary as a limited reward worker. Throws Error as check_reward_flags.
std::unique_ptr<RewardProcess> start_rewards(const RewardFlags& flags);

}  // namespace nibble
