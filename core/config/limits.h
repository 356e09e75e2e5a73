#pragma once

#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

namespace nibble {

/// What a number in a configuration may be. A default-constructed one allows every finite number.
/// Build it with Range, AtLeast, Above or OneOf.
struct Limits {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_is_excluded = false;
  std::vector<double> one_of = {};  ///< if not empty, the only values allowed

  bool allow(double value) const;
  /// "between 0 and 1", "at least 1", "one of 32, 64, 128"; empty if everything is allowed.
  std::string describe() const;
};

/// min <= value <= max
struct Range : Limits {
  Range(double low, double high) : Limits{.min = low, .max = high} {}
};
/// value >= min
struct AtLeast : Limits {
  explicit AtLeast(double low) : Limits{.min = low} {}
};
/// value > min
struct Above : Limits {
  explicit Above(double low) : Limits{.min = low, .min_is_excluded = true} {}
};
/// value is in the list
struct OneOf : Limits {
  OneOf(std::initializer_list<double> values) : Limits{.one_of = values} {}
};

}  // namespace nibble
