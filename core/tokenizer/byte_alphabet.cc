#include "core/tokenizer/byte_alphabet.h"

#include <array>

#include "core/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr bool is_own_character(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kFirstShifted =
    0x100;  // bytes without a printable character of their own go here, in order

struct Alphabet {
  std::array<int, 256> character_of{};
  std::array<int, kFirstShifted + 68> byte_of{};  // -1: not in the alphabet
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (int& byte : alphabet.byte_of) byte = -1;
  int next = kFirstShifted;
  for (int byte = 0; byte < 256; ++byte) {
    const int character = is_own_character(byte) ? byte : next++;
    alphabet.character_of[byte] = character;
    alphabet.byte_of[character] = byte;
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::optional<std::string> bytes_of_alphabet(std::string_view token) {
  std::string bytes;
  for (size_t pos = 0; pos < token.size();) {
    const Utf8Step step = utf8_step(token, pos);
    if (!step.valid || step.code_point >= kAlphabet.byte_of.size()) return std::nullopt;
    const int byte = kAlphabet.byte_of[step.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    pos += step.bytes;
  }
  return bytes;
}

std::string alphabet_of_byte(uint8_t byte) {
  std::string out;
  append_utf8(out, static_cast<char32_t>(kAlphabet.character_of[byte]));
  return out;
}

}  // namespace nibble
