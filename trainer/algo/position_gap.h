#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

/// The gap |trainer - rollout| of log-probabilities by a token's place in its response. Whether two
/// implementations drift apart along a response shows here and not in the mean: errors of a cache
/// add up with the position. Ranges double: places 0 to 15, 16 to 31, 32 to 63, ...; the last one
/// is open. Linear in what is added, so ranks add their sums.
class PositionGap {
 public:
  static constexpr int kRanges = 16;
  /// Sums of the gaps, then counts of the tokens, of every range.
  using Sums = std::array<double, size_t{2} * kRanges>;

  PositionGap() = default;
  explicit PositionGap(const Sums& sums) : sums_(sums) {}
  /// `position` from 0.
  void add(int64_t position, double gap);
  const Sums& sums() const { return sums_; }
  /// Name and mean of the ranges that have tokens: "logprob_abs_diff_to_16" for places below 16.
  static std::vector<std::pair<std::string, double>> means(const Sums& sums);

 private:
  Sums sums_{};
};

}  // namespace nibble
