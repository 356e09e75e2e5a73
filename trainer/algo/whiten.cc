#include "trainer/algo/whiten.h"

#include <cmath>
#include <cstddef>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kVarianceEpsilon = 1e-8;

void check_sizes(size_t values, size_t mask) {
  if (values == mask) return;
  fail(ErrorCode::kInvalidArgument, "whitening: {} values, a mask of {}", values, mask);
}

}  // namespace

MaskedSums masked_sums(std::span<const double> values, std::span<const uint8_t> mask) {
  check_sizes(values.size(), mask.size());
  MaskedSums sums;
  for (size_t i = 0; i < values.size(); ++i) {
    if (mask[i] == 0) continue;
    sums.count += 1;
    sums.sum += values[i];
  }
  return sums;
}

double masked_squares(std::span<const double> values, std::span<const uint8_t> mask, double mean) {
  check_sizes(values.size(), mask.size());
  double squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (mask[i] != 0) squares += (values[i] - mean) * (values[i] - mean);
  }
  return squares;
}

void whiten(std::span<double> values, const MaskedSums& sums, double squares) {
  const double variance = sums.count > 1 ? squares / (sums.count - 1) : 0;
  const double scale = 1 / std::sqrt(variance + kVarianceEpsilon);
  const double mean = sums.mean();
  for (double& value : values) value = (value - mean) * scale;
}

}  // namespace nibble
