#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// A pre-tokenizer's regular expression, run by PCRE2's JIT. tokenizer.json holds Oniguruma (Ruby)
/// patterns; the constructs whose meaning is the same in PCRE2 are accepted (\s is translated),
/// every other one is refused by name. Immutable; any thread may call split().
class SplitRegex {
 public:
  /// Throws Error{kInvalidArgument} if the pattern does not compile or is longer than 16 KiB, and
  /// Error{kUnimplemented} for a construct that is not supported. `what` names the field.
  SplitRegex(std::string_view pattern, std::string_view what);
  SplitRegex(SplitRegex&&) noexcept;
  SplitRegex& operator=(SplitRegex&&) noexcept;
  ~SplitRegex();

  /// Appends the matches and the gaps between them, in order and never empty ("Isolated").
  /// `text` is valid UTF-8. Throws Error{kResourceExhausted} if the pattern backtracks too much.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
  std::string what_;
};

/// The PCRE2 spelling of an Oniguruma pattern; errors as above. For tests.
std::string translate_onig_pattern(std::string_view pattern, std::string_view what);

}  // namespace nibble
