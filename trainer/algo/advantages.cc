#include "trainer/algo/advantages.h"

#include <cmath>
#include <cstddef>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kStdEpsilon = 1e-6;
constexpr double kMinFilterStd = 1e-8;

struct Moments {
  double count = 0;
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
  Moments moments{count, sum / count, 0};
  if (rewards.size() == 1) return moments;
  double squares = 0;
  for (const double reward : rewards) squares += (reward - moments.mean) * (reward - moments.mean);
  moments.std = std::sqrt(squares / (count - 1));
  return moments;
}

double advantage_of(double reward, const Moments& group, const AdvantageConfig& config) {
  const double centered = reward - group.mean;
  switch (config.type) {
    case AdvantageType::kGrpo:
      return config.normalize_std && group.std > 0 ? centered / (group.std + kStdEpsilon)
                                                   : centered;
    case AdvantageType::kRloo:
      // r - (sum - r) / (n - 1) = (r - mean) n / (n - 1)
      return group.count == 1 ? reward : centered * group.count / (group.count - 1);
    case AdvantageType::kReinforcePp:
    case AdvantageType::kGae:
      return reward;
    case AdvantageType::kReinforcePpBaseline:
      return centered;
    case AdvantageType::kOpd:
      return 0;
  }
  fail(ErrorCode::kInternal, "no advantage is of type {}", static_cast<int>(config.type));
}

}  // namespace

bool is_token_level(AdvantageType type) {
  return type == AdvantageType::kReinforcePp || type == AdvantageType::kReinforcePpBaseline ||
         type == AdvantageType::kGae;
}

void group_advantages(std::span<const double> rewards, const AdvantageConfig& config,
                      std::span<double> advantages) {
  const Moments moments = moments_of(rewards);
  if (advantages.size() != rewards.size()) {
    fail(ErrorCode::kInvalidArgument, "a group of {} rewards has room for {} advantages",
         rewards.size(), advantages.size());
  }
  for (size_t i = 0; i < rewards.size(); ++i) {
    advantages[i] = advantage_of(rewards[i], moments, config);
  }
}

bool has_nonzero_std(std::span<const double> rewards) {
  return moments_of(rewards).std > kMinFilterStd;
}

}  // namespace nibble
