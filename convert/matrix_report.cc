#include "convert/matrix_report.h"

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
  try {
    ConvertedMatrix matrix{json.at("module"), json.at("shape").at(0), json.at("shape").at(1),
                           json.at("relative_rms_error"), std::nullopt};
    if (!json.contains("output_error")) return matrix;
    matrix.calibration =
        CalibrationReport{json.at("output_error"), json.at("nearest_output_error"),
                          json.at("dampening"), json.at("recovery"), json.at("elapsed_ms")};
    return matrix;
  } catch (const Json::exception& error) {
    fail(ErrorCode::kInvalidArgument, "{}: no report of a matrix: {}", what, error.what());
  }
}

}  // namespace nibble
