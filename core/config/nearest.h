#pragma once

#include <span>
#include <string>
#include <string_view>

namespace nibble {

/// The candidate with the fewest edits (insert, delete, replace, swap of neighbours) from `word`,
/// or "" if none is near enough to be a likely slip: at most 2 edits, or a third of the word.
std::string nearest_word(std::string_view word, std::span<const std::string> candidates);

}  // namespace nibble
