#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// Unicode normalization form C. `text` is valid UTF-8. n log n at worst: a long run of combining
/// marks is sorted, not bubbled.
std::string to_nfc(std::string_view text);

}  // namespace nibble
