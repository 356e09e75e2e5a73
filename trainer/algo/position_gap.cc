#include "trainer/algo/position_gap.h"

#include <algorithm>
#include <bit>

namespace nibble {
namespace {

constexpr int64_t kFirstRange = 16;

size_t range_of(int64_t position) {
  const auto doublings = std::bit_width(static_cast<uint64_t>(position / kFirstRange));
  return std::min<size_t>(static_cast<size_t>(doublings), PositionGap::kRanges - 1);
}

}  // namespace

void PositionGap::add(int64_t position, double gap) {
  const size_t range = range_of(position);
  sums_[range] += gap;
  sums_[kRanges + range] += 1.0;
}

std::vector<std::pair<std::string, double>> PositionGap::means(const Sums& sums) {
  std::vector<std::pair<std::string, double>> means;
  for (size_t range = 0; range < kRanges; ++range) {
    const double count = sums[kRanges + range];
    if (count == 0.0) continue;
    means.emplace_back("logprob_abs_diff_to_" + std::to_string(kFirstRange << range),
                       sums[range] / count);
  }
  return means;
}

}  // namespace nibble
