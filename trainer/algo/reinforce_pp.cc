#include "trainer/algo/reinforce_pp.h"

#include <cstddef>

#include "core/base/fail.h"
#include "trainer/algo/aggregation.h"

namespace nibble {
namespace {

void check_sizes(const TokenRewards& rewards, size_t out) {
  count_totals(rewards.mask, rewards.sample_begin);  // checks the bounds
  const size_t tokens = rewards.mask.size();
  const size_t samples = rewards.sample_begin.size() - 1;
  if (rewards.score.size() != samples || out != tokens ||
      (!rewards.kl.empty() && rewards.kl.size() != tokens)) {
    fail(ErrorCode::kInvalidArgument,
         "token rewards: {} scores of {} samples, {} KL values and room for {} results of {} "
         "tokens",
         rewards.score.size(), samples, rewards.kl.size(), out, tokens);
  }
}

double penalty(const TokenRewards& rewards, double kl_coef, size_t token) {
  return rewards.kl.empty() ? 0 : kl_coef * rewards.kl[token];
}

}  // namespace

void reinforce_pp_returns(const TokenRewards& rewards, double kl_coef, double gamma,
                          std::span<double> returns) {
  check_sizes(rewards, returns.size());
  for (size_t s = 0; s < rewards.score.size(); ++s) {
    const auto begin = static_cast<size_t>(rewards.sample_begin[s]);
    double value = 0;
    bool is_scored = false;
    for (auto i = static_cast<size_t>(rewards.sample_begin[s + 1]); i-- > begin;) {
      double reward = -penalty(rewards, kl_coef, i);
      if (!is_scored && rewards.mask[i] != 0) {
        reward += rewards.score[s];
        is_scored = true;
      }
      value = reward + gamma * value;
      returns[i] = value;
    }
  }
}

void reinforce_pp_baseline(const TokenRewards& rewards, double kl_coef,
                           std::span<double> advantages) {
  check_sizes(rewards, advantages.size());
  for (size_t s = 0; s < rewards.score.size(); ++s) {
    const auto end = static_cast<size_t>(rewards.sample_begin[s + 1]);
    for (auto i = static_cast<size_t>(rewards.sample_begin[s]); i < end; ++i) {
      advantages[i] = rewards.score[s] - penalty(rewards, kl_coef, i);
    }
  }
}

}  // namespace nibble
