#pragma once

#include <string>
#include <string_view>

namespace nibble::miles {

/// The first normalization: of the MATH data set. Units, percent and dollar signs, degrees and a
/// short left side of "=" dropped; \frac and \sqrt in braces; a/b and 0.5 as \frac. Text that its
/// rules stumble over is returned trimmed.
std::string mathd_normalized(std::string_view answer);

/// The second: LaTeX as plain text (latex_to_text.h), in lower case without spaces, units and
/// braces; "and" and "or" as commas; numbers that are whole to 1e-7 as integers.
std::string normalized(std::string_view answer);

/// "1,234" as "1234", also within other text.
std::string without_thousands(std::string text);

/// Whether it reads as a number, whole to 1e-7.
bool is_integer_text(const std::string& text);

/// Letters, those beyond ASCII by their code points.
int num_distinct_letters(std::string_view text);

}  // namespace nibble::miles
