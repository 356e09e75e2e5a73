#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "convert/convert.h"

namespace nibble {

/// What one group size would give.
struct GroupSizeResult {
  int64_t group_size = 0;
  std::vector<std::string> undivided;  ///< matrices whose inputs it does not divide: none is tried
  int64_t output_bytes = 0;
  /// Root mean square over matrices; none for rounding to nearest, which looks at no output.
  std::optional<double> output_error;
  HeldOutResult held_out;
};

/// Quantizes a model by each group size side by side, layer by layer, and compares what comes out
/// with the original on held-out text. Nothing is written: `options.output` is not looked at.
/// Errors as in convert().
std::vector<GroupSizeResult> compare_group_sizes(const ConvertOptions& options,
                                                 std::span<const int64_t> group_sizes,
                                                 const CalibrationTokens& tokens,
                                                 const ops::Backend& backend,
                                                 const ConvertProgress& progress);

}  // namespace nibble
