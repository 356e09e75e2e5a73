#pragma once

#include <string_view>

namespace nibble::math {

/// Whether the answer that a response ends in equals the label, which is LaTeX or a number as it
/// would stand in a \boxed{}. Follows math-verify 0.9 in what it looks for (answer_extraction.h)
/// and in what counts as equal (equality.h). Takes milliseconds, whatever the response says: what
/// exceeds math_limits.h is not equal. Throws Error{kInvalidArgument} for a label that is empty or
/// longer than kMaxLatexBytes.
bool is_right_answer(std::string_view response, std::string_view label);

}  // namespace nibble::math
