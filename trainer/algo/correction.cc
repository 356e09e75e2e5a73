#include "trainer/algo/correction.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kMaxLogRatio = 20;

double safe_ratio(double log_ratio) {
  return std::exp(std::clamp(log_ratio, -kMaxLogRatio, kMaxLogRatio));
}

// The ratios of mis, one per token.
std::vector<double> ratios(std::span<const double> log_ratio, MisLevel level) {
  std::vector<double> out;
  out.reserve(log_ratio.size());
  double sum = 0;
  for (const double value : log_ratio) {
    sum += value;
    out.push_back(safe_ratio(value));
  }
  if (level == MisLevel::kToken || out.empty()) return out;
  if (level == MisLevel::kGeometric) sum /= static_cast<double>(out.size());
  std::fill(out.begin(), out.end(), safe_ratio(sum));
  return out;
}

TokenCorrection bounded(const CorrectionConfig& config, double ratio) {
  const double clamped = std::clamp(ratio, config.low, config.high);
  const bool is_cut = clamped != ratio;
  return {.weight = is_cut && config.kind == OffPolicyCorrection::kIcepop ? 0 : clamped,
          .is_cut = is_cut};
}

TokenCorrection mis_weight(const CorrectionConfig& config, double ratio) {
  switch (config.mode) {
    case MisMode::kTruncate:
      return {.weight = std::min(ratio, config.high), .is_cut = ratio > config.high};
    case MisMode::kClip:
      return bounded(config, ratio);
    case MisMode::kMask:
      return {.weight = ratio, .is_rejected = ratio < config.low || ratio > config.high};
  }
  fail(ErrorCode::kInternal, "no mode of mis has the number {}", static_cast<int>(config.mode));
}

std::vector<TokenCorrection> mis(const CorrectionConfig& config,
                                 std::span<const double> log_ratio) {
  std::vector<TokenCorrection> out;
  for (const double ratio : ratios(log_ratio, config.level)) {
    out.push_back(mis_weight(config, ratio));
  }
  if (config.reject_level) {
    const double low = config.reject_low.value_or(config.low);
    const double high = config.reject_high.value_or(config.high);
    const std::vector<double> tested = ratios(log_ratio, *config.reject_level);
    for (size_t i = 0; i < out.size(); ++i) {
      if (tested[i] < low || tested[i] > high) out[i].is_rejected = true;
    }
  }
  const bool is_vetoed =
      config.veto > 0 && std::any_of(log_ratio.begin(), log_ratio.end(),
                                     [&](double value) { return value < std::log(config.veto); });
  for (TokenCorrection& token : out) token.is_vetoed = is_vetoed;
  return out;
}

}  // namespace

void validate(const CorrectionConfig& config) {
  const auto require = [](bool is_valid, std::string_view name, double value,
                          std::string_view range) {
    if (!is_valid) {
      fail(ErrorCode::kInvalidArgument, "policy loss: {} is {}; it must be {}", name, value, range);
    }
  };
  // Written so that NaN fails.
  require(config.low >= 0, "correction_low", config.low, ">= 0");
  require(config.high > config.low && std::isfinite(config.high), "correction_high", config.high,
          "> correction_low");
  require(config.veto >= 0 && config.veto < 1, "mis_veto", config.veto, "0 (off) or below 1");
  const double low = config.reject_low.value_or(config.low);
  const double high = config.reject_high.value_or(config.high);
  require(low >= 0, "mis_reject_low", low, ">= 0");
  require(high > low && std::isfinite(high), "mis_reject_high", high, "> mis_reject_low");
}

std::vector<TokenCorrection> correct_sample(const CorrectionConfig& config,
                                            std::span<const double> log_ratio) {
  if (config.kind == OffPolicyCorrection::kMis) return mis(config, log_ratio);
  std::vector<TokenCorrection> out(log_ratio.size());
  if (config.kind == OffPolicyCorrection::kNone) return out;
  for (size_t i = 0; i < out.size(); ++i) out[i] = bounded(config, std::exp(log_ratio[i]));
  return out;
}

double mis_batch_factor(std::span<const std::vector<TokenCorrection>> samples, MisLevel level) {
  double sum = 0;
  double count = 0;
  for (const std::vector<TokenCorrection>& sample : samples) {
    const auto tokens = static_cast<double>(sample.size());
    if (sample.empty()) continue;
    const double per_token = level == MisLevel::kToken ? 1 : 1 / tokens;
    for (const TokenCorrection& token : sample) sum += token.weight * per_token;
    count += tokens * per_token;
  }
  return sum > 0 ? count / sum : 1;
}

}  // namespace nibble
