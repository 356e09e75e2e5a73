#pragma once

#include <span>
#include <string>

#include "convert/compare.h"
#include "convert/convert.h"

namespace nibble {

/// One JSON object, a line.
std::string convert_report_json(const ConvertReport& report, const ConvertOptions& options);
std::string comparison_json(std::span<const GroupSizeResult> results);

/// A few lines, and for GPTQ a table by kind of matrix.
std::string convert_report_text(const ConvertReport& report, const ConvertOptions& options);
/// A table by group size, and what a size does not divide.
std::string comparison_text(std::span<const GroupSizeResult> results);

}  // namespace nibble
