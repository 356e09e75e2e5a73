#include "trainer/algo/gae.h"

#include <algorithm>
#include <cstddef>

#include "core/base/fail.h"
#include "trainer/algo/aggregation.h"

namespace nibble {

void gae(const ValuedTokens& tokens, double gamma, double lambda, std::span<double> advantages,
         std::span<double> returns) {
  count_totals(tokens.mask, tokens.sample_begin);  // checks the bounds
  const size_t count = tokens.mask.size();
  if (tokens.reward.size() != count || tokens.value.size() != count || advantages.size() != count ||
      returns.size() != count) {
    fail(ErrorCode::kInvalidArgument,
         "gae: {} rewards, {} values and room for {} advantages and {} returns of {} tokens",
         tokens.reward.size(), tokens.value.size(), advantages.size(), returns.size(), count);
  }
  std::fill(advantages.begin(), advantages.end(), 0.0);
  std::fill(returns.begin(), returns.end(), 0.0);
  for (size_t s = 0; s + 1 < tokens.sample_begin.size(); ++s) {
    const auto begin = static_cast<size_t>(tokens.sample_begin[s]);
    double next_value = 0;
    double advantage = 0;
    for (auto i = static_cast<size_t>(tokens.sample_begin[s + 1]); i-- > begin;) {
      if (tokens.mask[i] == 0) continue;
      const double delta = tokens.reward[i] + gamma * next_value - tokens.value[i];
      advantage = delta + gamma * lambda * advantage;
      next_value = tokens.value[i];
      advantages[i] = advantage;
      returns[i] = advantage + tokens.value[i];
    }
  }
}

}  // namespace nibble
