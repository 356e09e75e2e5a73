#pragma once

#include <string>
#include <string_view>

namespace nibble::miles {

/// LaTeX as plain text, the way of pylatexenc with the signs that the rule replaces afterwards:
/// \frac{a}{b} is a/b without parentheses, \sqrt{x} is sqrt(x), Greek letters and relations are
/// Unicode, text and font commands are what is in them, matrices "[1 2; 3 4]", unknown commands
/// nothing.
std::string latex_to_text(std::string_view latex);

}  // namespace nibble::miles
