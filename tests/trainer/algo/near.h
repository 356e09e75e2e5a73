#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "core/base/json.h"

namespace nibble {

/// Fails unless |actual - expected| <= 1e-9 |expected| + 1e-12: the fixtures' tolerance in double.
inline void expect_near_double(double actual, double expected, const std::string& what) {
  EXPECT_LE(std::abs(actual - expected), 1e-9 * std::abs(expected) + 1e-12)
      << what << ": got " << actual << ", want " << expected;
}

/// The fixtures' tolerance in float: 2e-5 relative + 1e-6.
inline void expect_near_float(double actual, double expected, const std::string& what) {
  EXPECT_LE(std::abs(actual - expected), 2e-5 * std::abs(expected) + 1e-6)
      << what << ": got " << actual << ", want " << expected;
}

inline Json rl_fixture(const std::string& name) {
  return read_json_file(std::string(NIBBLE_SOURCE_DIR "/tests/oracles/rl/") + name);
}

}  // namespace nibble
