#include "rollout/reward_config.h"

#include "core/base/fail.h"
#include "rollout/reward/remote_scorer.h"
#include "rollout/reward/scorer.h"

namespace nibble {

RewardSpec reward_spec(const RewardConfig& config) {
  const RewardSpec spec{parse_reward_parts(config.type), config.url, config.remote_timeout_ms,
                        config.remote_attempts};
  (void)make_scorer(spec);  // what is wrong shows here, where it is named best
  const int64_t longest_ms = config.url.empty() ? 0 : longest_wait(remote_options(spec)).count();
  if (longest_ms >= config.timeout_ms) {
    fail(ErrorCode::kInvalidArgument,
         "{} attempts of {} ms and the pauses between them may take {} ms, but a response has {} "
         "ms to be scored in (timeout_ms)",
         config.remote_attempts, config.remote_timeout_ms, longest_ms, config.timeout_ms);
  }
  return spec;
}

}  // namespace nibble
