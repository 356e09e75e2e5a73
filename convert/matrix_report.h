#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/base/json.h"

namespace nibble {

/// What calibration says of one matrix. Errors are root mean squares over calibration tokens,
/// relative to the matrix's outputs.
struct CalibrationReport {
  double output_error = 0.0;
  double nearest_output_error = 0.0;  ///< if it were rounded to nearest
  double dampening = 0.0;             ///< that was used
  std::string recovery = "none";      ///< recovery_name()
  double elapsed_ms = 0.0;
};

/// What became of one matrix.
struct ConvertedMatrix {
  std::string module;
  int64_t rows = 0;
  int64_t cols = 0;
  double relative_rms_error = 0.0;  ///< |w - w'| / |w|
  std::optional<CalibrationReport> calibration;
};

OrderedJson to_json(const ConvertedMatrix& matrix);
/// The inverse. Throws Error{kInvalidArgument} naming `what` for anything else.
ConvertedMatrix parse_converted_matrix(const Json& json, const std::string& what);

}  // namespace nibble
