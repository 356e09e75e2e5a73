#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

/// A token that is cut out of the text before anything else happens to it.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes white space on its left with it
  bool rstrip = false;
  bool normalized = false;  ///< looked for in the normalized text
  bool special = false;     ///< dropped by decode(skip_special)
};

/// A stretch of text between added tokens, or one added token.
struct TextSpan {
  std::string_view text;
  int32_t token = -1;  ///< the added token's id; -1: plain text
};

/// Finds added tokens, leftmost first, the longest at each place, as `tokenizers` does. Linear in
/// the text times the longest token. Immutable; any thread may call split().
class AddedTokenMatcher {
 public:
  /// Contents must not be empty; the later of two equal ones wins.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  /// Appends the spans of `text` (valid UTF-8), in order.
  void split(std::string_view text, std::vector<TextSpan>& spans) const;

 private:
  struct Node {
    std::vector<std::pair<unsigned char, int>> children;
    int token = -1;  // index into tokens_
  };
  std::pair<int, size_t> longest_match(std::string_view text, size_t pos) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> starts_{};  // bytes that begin a token
};

}  // namespace nibble
