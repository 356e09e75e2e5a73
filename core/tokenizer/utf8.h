#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble {

/// One step of a UTF-8 decoder.
struct Utf8Step {
  char32_t code_point = 0xFFFD;  ///< U+FFFD where the bytes are not well formed
  int bytes = 0;                 ///< consumed: a character, or a maximal ill-formed subpart; >= 1
  bool valid = false;
  bool incomplete = false;  ///< the text ended inside a so far well-formed character
};

/// Decodes the character at `text[pos]`; `pos` must be inside the text. Ill-formed bytes are cut
/// into maximal subparts (Unicode 3.9, table 3-8), as Python and Rust do when they replace.
Utf8Step utf8_step(std::string_view text, size_t pos);

/// Offset of the first ill-formed byte, or npos.
size_t find_invalid_utf8(std::string_view text);

/// Appends one code point (a Unicode scalar value) as UTF-8.
void append_utf8(std::string& out, char32_t code_point);

/// Appends `text` with U+FFFD for every maximal ill-formed subpart. Returns how many bytes were
/// consumed: all but a trailing incomplete character (at most 3 bytes).
size_t append_lossy_utf8(std::string& out, std::string_view text);

}  // namespace nibble
