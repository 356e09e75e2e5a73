#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// Finds the first of some stop strings in text that arrives in pieces, cut anywhere (inside a
/// UTF-8 character too). Time is linear in the text, memory independent of it. One thread.
class StopStrings {
 public:
  static constexpr size_t kMaxStrings = 64;
  static constexpr size_t kMaxBytes = 1024;  ///< of one string

  /// Throws Error{kInvalidArgument} for an empty string or more than the limits.
  explicit StopStrings(std::vector<std::string> strings);

  struct Match {
    size_t string = 0;       ///< which; of those that end together the longest
    int64_t begin_byte = 0;  ///< where it begins in the text so far
    int64_t end_byte = 0;
  };
  /// Reads the next piece; returns the first match to end in the text, then for ever the same.
  std::optional<Match> push(std::string_view piece);

  /// How many bytes at the end of the text may yet turn into a stop string: what a stream must
  /// hold back.
  int64_t pending_bytes() const;

 private:
  struct Pattern {
    std::string text;
    std::vector<int32_t> fallback;  // Knuth-Morris-Pratt: longest border of text[0..i]
    int32_t matched = 0;            // bytes of text that the stream now ends with
  };
  std::vector<Pattern> patterns_;
  int64_t bytes_ = 0;
  std::optional<Match> found_;
};

}  // namespace nibble
