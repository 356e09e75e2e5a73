#include "core/config/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace nibble {

bool Limits::allow(double value) const {
  if (!std::isfinite(value)) return false;
  if (!one_of.empty()) return std::find(one_of.begin(), one_of.end(), value) != one_of.end();
  return value <= max && (min_is_excluded ? value > min : value >= min);
}

std::string Limits::describe() const {
  if (!one_of.empty()) return fmt::format("one of {}", fmt::join(one_of, ", "));
  const bool has_min = std::isfinite(min);
  const bool has_max = std::isfinite(max);
  if (has_min && has_max) {
    return min_is_excluded ? fmt::format("above {} and at most {}", min, max)
                           : fmt::format("between {} and {}", min, max);
  }
  if (has_min) return fmt::format("{} {}", min_is_excluded ? "above" : "at least", min);
  if (has_max) return fmt::format("at most {}", max);
  return "";
}

}  // namespace nibble
