#include "rollout/engine/draft_asker.h"

#include <cmath>

#include "core/base/fail.h"

namespace nibble {

void take_guess(DraftAsker& asker, const Draw& draw, int64_t weights_version, DraftPolicy& policy) {
  if (!std::isfinite(draw.log_prob)) {
    fail(ErrorCode::kFailedPrecondition,
         "draft weights of version {} give request {} a log-probability of {}; set sound weights",
         weights_version, asker.query->id, draw.log_prob);
  }
  const float probability = std::clamp(std::exp(draw.log_prob), 1e-6f, 1.0f);
  asker.query->guesses.push_back({draw.token, probability, DraftToken::kFromModel});
  const int kind = DraftPolicy::kind_of(asker.query->guesses.back());
  policy.observe_drafted(kind);
  asker.chance *= policy.chance(kind);
}

}  // namespace nibble
