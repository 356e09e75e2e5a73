#include "rollout/engine/stop_strings.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {

StopStrings::StopStrings(std::vector<std::string> strings) {
  if (strings.size() > kMaxStrings) {
    fail(ErrorCode::kInvalidArgument, "{} stop strings; at most {} are allowed", strings.size(),
         kMaxStrings);
  }
  for (std::string& text : strings) {
    if (text.empty() || text.size() > kMaxBytes) {
      fail(ErrorCode::kInvalidArgument, "a stop string has {} bytes; it needs 1 to {}", text.size(),
           kMaxBytes);
    }
    std::vector<int32_t> fallback(text.size(), 0);
    for (size_t i = 1; i < text.size(); ++i) {
      int32_t border = fallback[i - 1];
      while (border > 0 && text[i] != text[static_cast<size_t>(border)]) {
        border = fallback[static_cast<size_t>(border) - 1];
      }
      fallback[i] = border + (text[i] == text[static_cast<size_t>(border)] ? 1 : 0);
    }
    patterns_.push_back({std::move(text), std::move(fallback), 0});
  }
}

std::optional<StopStrings::Match> StopStrings::push(std::string_view piece) {
  for (size_t i = 0; i < piece.size() && !found_; ++i) {
    ++bytes_;
    for (size_t p = 0; p < patterns_.size(); ++p) {
      Pattern& pattern = patterns_[p];
      int32_t& matched = pattern.matched;
      while (matched > 0 && piece[i] != pattern.text[static_cast<size_t>(matched)]) {
        matched = pattern.fallback[static_cast<size_t>(matched) - 1];
      }
      if (piece[i] == pattern.text[static_cast<size_t>(matched)]) ++matched;
      const auto length = static_cast<int64_t>(pattern.text.size());
      if (matched < length) continue;
      if (!found_ || bytes_ - length < found_->begin_byte) {
        found_ = Match{p, bytes_ - length, bytes_};
      }
    }
  }
  return found_;
}

int64_t StopStrings::pending_bytes() const {
  int32_t pending = 0;
  if (found_) return 0;
  for (const Pattern& pattern : patterns_) pending = std::max(pending, pattern.matched);
  return pending;
}

}  // namespace nibble
