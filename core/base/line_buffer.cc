#include "core/base/line_buffer.h"

#include "core/base/fail.h"

namespace nibble {

std::optional<std::string> LineBuffer::next_line() {
  const size_t end = bytes_.find('\n', scanned_);
  const bool is_whole = end != std::string::npos;
  scanned_ = is_whole ? end : bytes_.size();
  if (scanned_ - begin_ > max_line_bytes_) {
    fail(ErrorCode::kInvalidArgument, "a line is longer than {} bytes", max_line_bytes_);
  }
  if (!is_whole) {
    bytes_.erase(0, begin_);
    scanned_ -= begin_;
    begin_ = 0;
    return std::nullopt;
  }
  std::string line = bytes_.substr(begin_, end - begin_);
  begin_ = scanned_ = end + 1;
  return line;
}

void LineBuffer::clear() {
  bytes_.clear();
  begin_ = scanned_ = 0;
}

}  // namespace nibble
