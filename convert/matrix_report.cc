#include "convert/matrix_report.h"

#include <limits>

#include "core/base/fail.h"

namespace nibble {

OrderedJson to_json(const ConvertedMatrix& matrix) {
  OrderedJson json = {{"module", matrix.module},
                      {"shape", {matrix.rows, matrix.cols}},
                      {"relative_rms_error", matrix.relative_rms_error}};
  if (!matrix.calibration) return json;
  const CalibrationReport& c = *matrix.calibration;
  json["output_error"] = c.output_error;
  json["nearest_output_error"] = c.nearest_output_error;
  json["dampening"] = c.dampening;
  json["recovery"] = c.recovery;
  json["elapsed_ms"] = c.elapsed_ms;
  return json;
}

ConvertedMatrix parse_converted_matrix(const Json& json, const std::string& what) {
  // JSON has no NaN or infinity: an error that overflowed was written as null.
  const auto number = [&](const char* key) {
    const Json& value = json.at(key);
    return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
  };
  try {
    ConvertedMatrix matrix{json.at("module"), json.at("shape").at(0), json.at("shape").at(1),
                           number("relative_rms_error"), std::nullopt};
    if (!json.contains("output_error")) return matrix;
    matrix.calibration =
        CalibrationReport{number("output_error"), number("nearest_output_error"),
                          json.at("dampening"), json.at("recovery"), json.at("elapsed_ms")};
    return matrix;
  } catch (const Json::exception& error) {
    fail(ErrorCode::kInvalidArgument, "{}: no report of a matrix: {}", what, error.what());
  }
}

}  // namespace nibble
