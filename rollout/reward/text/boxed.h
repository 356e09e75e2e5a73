#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// The content of the last \boxed{..}, or \fbox{..} where no \boxed is; nullopt if there is none,
/// it does not close, or no brace follows.
std::optional<std::string_view> last_boxed(std::string_view text);

enum class BoxChoice {
  kAll,   // of the text
  kLast,  // the last one and those close before it: an answer in several boxes
};

/// The contents of boxes joined by commas, equal neighbours once; an unclosed last box reaches to
/// the end of the text. Without a box the text itself.
std::string join_boxes(std::string_view text, BoxChoice choice);

}  // namespace nibble
