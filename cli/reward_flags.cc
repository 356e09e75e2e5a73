#include "cli/reward_flags.h"

#include <CLI/CLI.hpp>

#include "cli/worker_process.h"
#include "core/base/fail.h"
#include "rollout/reward/scorer.h"

namespace nibble {

void add_reward_flags(CLI::App& command, const char* type_flag, RewardConfig& flags) {
  command
      .add_option(type_flag, flags.type,
                  known_reward_types() + "; TYPE=WEIGHT,TYPE=WEIGHT adds several up")
      ->required();
  command.add_option("--timeout-ms", flags.timeout_ms, "for scoring one response")
      ->capture_default_str();
  command.add_option("--memory-mb", flags.memory_mb, "memory of the process that scores, in MiB")
      ->capture_default_str();
  command.add_option("--remote-url", flags.url,
                     "http://HOST:PORT/PATH or grpc://HOST:PORT that scores for type remote");
  command.add_option("--remote-timeout-ms", flags.remote_timeout_ms, "for one request to it")
      ->capture_default_str();
  command
      .add_option("--remote-attempts", flags.remote_attempts,
                  "requests before a response counts as not scored")
      ->capture_default_str();
}

void check_reward_flags(const RewardConfig& flags) {
  constexpr int64_t kMaxTimeoutMs = 3'600'000;
  if (flags.timeout_ms < 1 || flags.timeout_ms > kMaxTimeoutMs) {
    fail(ErrorCode::kInvalidArgument, "--timeout-ms is {}; it must be from 1 to {}",
         flags.timeout_ms, kMaxTimeoutMs);
  }
  if (flags.memory_mb < 64 || flags.memory_mb > (1 << 20)) {
    fail(ErrorCode::kInvalidArgument, "--memory-mb is {}; it must be from 64 to {}",
         flags.memory_mb, 1 << 20);
  }
  (void)reward_spec(flags);
}

std::unique_ptr<RewardProcess> start_rewards(const RewardConfig& flags) {
  check_reward_flags(flags);
  RewardProcessOptions options;
  options.command = {reward_binary(), reward_argument(reward_spec(flags))};
  options.sample_timeout = std::chrono::milliseconds(flags.timeout_ms);
  options.limits.max_memory_bytes = flags.memory_mb << 20;
  return std::make_unique<RewardProcess>(std::move(options));
}

}  // namespace nibble
