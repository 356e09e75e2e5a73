#pragma once

#include <string>

namespace nibble::math {

/// Braces where people leave them out: ^(..), sqrt(..), \frac12, \frac1{2}, \sqrt3, \log_23; and
/// a/b of two whole numbers, alone, as \frac{a}{b}.
std::string repair_short_forms(std::string text);

/// "a/b" of two whole numbers as \frac{a}{b}; any other text as it is.
std::string fraction_of_slash(const std::string& text);

}  // namespace nibble::math
