#pragma once

#include <cstddef>
#include <string_view>

namespace nibble {

/// Without ASCII white space at both ends.
std::string_view trim(std::string_view text);

/// Number of code points of valid UTF-8 (of bytes that do not continue a code point, in any text).
size_t count_code_points(std::string_view text);

inline bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

}  // namespace nibble
