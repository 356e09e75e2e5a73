#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/tokenizer/split_regex.h"

namespace nibble {

/// One step of a pre-tokenizer, in the order: prefix, digits, pattern.
struct PreTokenizerStep {
  enum class Digits { kNo, kContiguous, kIndividual };
  bool add_prefix_space = false;      ///< ByteLevel: a space before each piece that has none
  Digits digits = Digits::kNo;        ///< Digits: numbers apart from the rest
  std::optional<SplitRegex> pattern;  ///< Split and ByteLevel(use_regex)
};

/// Cuts a text into the pieces inside which BPE may merge. Immutable; any thread may call it.
class PreTokenizer {
 public:
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  /// The pieces of one call: views into the text, or into `owned` where a space was added.
  struct Pieces {
    std::vector<std::string_view> views;
    std::deque<std::string> owned;
  };

  /// Replaces `pieces` with those of `text` (valid UTF-8), none empty.
  void split(std::string_view text, Pieces& pieces) const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

/// GPT-2's pattern, which ByteLevel(use_regex) stands for.
std::string_view gpt2_pattern();

}  // namespace nibble
