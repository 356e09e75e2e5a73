#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// The alphabet of byte-level BPE (GPT-2): every byte has a printable character, so that
/// tokenizer.json can hold tokens that are not UTF-8. Space is U+0120.

/// The bytes that `token` spells, or nullopt if it has a character outside the alphabet.
std::optional<std::string> bytes_of_alphabet(std::string_view token);

/// The character of one byte, as UTF-8.
std::string alphabet_of_byte(uint8_t byte);

}  // namespace nibble
