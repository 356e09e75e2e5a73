#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

/// Lengths as answers have them: most are short, a few very long. Log-normal, rounded, cut at both
/// ends to [1, longest].
struct LengthTail {
  double median = 64;
  double sigma = 1.0;  ///< of the logarithm; 0: all have the median
  int64_t longest = 512;
  uint64_t seed = 1;
};

/// The first `count` lengths; a longer list begins with a shorter one.
std::vector<int64_t> long_tailed_lengths(int64_t count, const LengthTail& tail);

/// The value that a share `q` of the others lie below: 0.5 is the median, between two of them it is
/// interpolated. 0 if there are none.
double quantile(std::vector<double> values, double q);

}  // namespace nibble
