#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// Cuts a byte stream into lines. Take all lines after each append: then it holds at most one
/// unfinished line and what was appended last. One thread.
class LineBuffer {
 public:
  explicit LineBuffer(size_t max_line_bytes) : max_line_bytes_(max_line_bytes) {}
  void append(std::string_view bytes) { bytes_ += bytes; }
  /// The next whole line without its line feed; nullopt if more bytes are needed. Throws
  /// Error{kInvalidArgument} for a line, finished or not, above the limit.
  std::optional<std::string> next_line();
  void clear();

 private:
  const size_t max_line_bytes_;
  std::string bytes_;
  size_t begin_ = 0;    // of the first line not taken
  size_t scanned_ = 0;  // no line feed in [begin_, scanned_)
};

}  // namespace nibble
