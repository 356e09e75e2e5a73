#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// What the last line "Answer: .." of the last 300 characters gives, normalized: units and text
/// dropped, thousands without commas. "[INVALID]" without such a line.
std::string dapo_answer(std::string_view response);

/// The rule of DAPO: 1 if that is the label, a number of which the whole part counts, else -1.
/// Throws Error{kInvalidArgument} for a label that is no number.
double dapo_score(std::string_view response, std::string_view label);

}  // namespace nibble
