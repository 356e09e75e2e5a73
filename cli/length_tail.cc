#include "cli/length_tail.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/splitmix64.h"

namespace nibble {
namespace {

double uniform(uint64_t& state) { return static_cast<double>(splitmix64(state) >> 11) * 0x1.0p-53; }

// Box and Muller's: std::normal_distribution differs between libraries.
double normal(uint64_t& state) {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(state)));
  return radius * std::cos(2.0 * std::numbers::pi * uniform(state));
}

}  // namespace

std::vector<int64_t> long_tailed_lengths(int64_t count, const LengthTail& tail) {
  uint64_t state = tail.seed;
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < count; ++i) {
    const double length = tail.median * std::exp(tail.sigma * normal(state));
    const double cut = std::clamp(std::round(length), 1.0, static_cast<double>(tail.longest));
    lengths.push_back(static_cast<int64_t>(cut));
  }
  return lengths;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const double place = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  const double share = place - static_cast<double>(below);
  return values[below] + share * (values[above] - values[below]);
}

}  // namespace nibble
