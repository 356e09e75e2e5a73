#pragma once

#include <string>

namespace nibble::math {

/// Without what follows the value at the end: "\text{..}" with a power, then up to two words of
/// measure ("square feet", "cm", "degrees", "s") behind a digit, a brace or a space. Text that
/// would be left empty stays.
std::string without_units(std::string text);

}  // namespace nibble::math
