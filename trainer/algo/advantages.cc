#include "trainer/algo/advantages.h"

#include <cmath>
#include <cstddef>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kStdEpsilon = 1e-6;
constexpr double kMinFilterStd = 1e-8;

struct Moments {
  double mean = 0;
  double std = 0;  // unbiased; 0 for one sample
};

Moments moments_of(std::span<const double> rewards) {
  if (rewards.empty()) fail(ErrorCode::kInvalidArgument, "a prompt group has no samples");
  double sum = 0;
  for (size_t i = 0; i < rewards.size(); ++i) {
    if (!std::isfinite(rewards[i])) {
      fail(ErrorCode::kInvalidArgument,
           "the reward of sample {} of a prompt group is {}; rewards must be finite", i,
           rewards[i]);
    }
    sum += rewards[i];
  }
  const auto count = static_cast<double>(rewards.size());
  Moments moments{sum / count, 0};
  if (rewards.size() == 1) return moments;
  double squares = 0;
  for (const double reward : rewards) squares += (reward - moments.mean) * (reward - moments.mean);
  moments.std = std::sqrt(squares / (count - 1));
  return moments;
}

}  // namespace

void group_advantages(std::span<const double> rewards, const AdvantageConfig& config,
                      std::span<double> advantages) {
  const Moments moments = moments_of(rewards);
  if (advantages.size() != rewards.size()) {
    fail(ErrorCode::kInvalidArgument, "a group of {} rewards has room for {} advantages",
         rewards.size(), advantages.size());
  }
  const auto count = static_cast<double>(rewards.size());
  for (size_t i = 0; i < rewards.size(); ++i) {
    const double centered = rewards[i] - moments.mean;
    if (config.type == AdvantageType::kRloo) {
      // r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
      advantages[i] = rewards.size() == 1 ? rewards[i] : centered * count / (count - 1);
    } else if (config.normalize_std && moments.std > 0) {
      advantages[i] = centered / (moments.std + kStdEpsilon);
    } else {
      advantages[i] = centered;
    }
  }
}

bool has_nonzero_std(std::span<const double> rewards) {
  return moments_of(rewards).std > kMinFilterStd;
}

}  // namespace nibble
