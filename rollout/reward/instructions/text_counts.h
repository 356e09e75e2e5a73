#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// In lower case (ASCII).
std::string lower_text(std::string_view text);

/// Runs of letters, digits and underscores, bytes beyond ASCII included: "don't" is two.
std::vector<std::string_view> words_of(std::string_view text);

/// Pieces that end in . ! or ? with white space or the end behind it; "3.5" ends none. Text behind
/// the last sign counts as one more.
int64_t count_sentences(std::string_view text);

/// Pieces between lines of "***", white space around each dropped, empty ones not counted.
std::vector<std::string_view> paragraphs_of(std::string_view text);

/// How often `phrase` stands in the text with no word character on either side; both in lower case.
int64_t count_phrase(std::string_view text, std::string_view phrase);

/// Lines that begin with "* " or "- " (white space before it allowed).
int64_t count_bullets(std::string_view text);

/// Pieces between `open` and `close` on one line with something in them.
int64_t count_enclosed(std::string_view text, std::string_view open, std::string_view close);

}  // namespace nibble
