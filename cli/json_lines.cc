#include "cli/json_lines.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxLineBytes = 64 << 20;
constexpr size_t kReadBytes = 1 << 16;

}  // namespace

JsonLineReader::JsonLineReader(const std::string& path) : name_(path == "-" ? "stdin" : path) {
  if (path == "-") return;
  if (std::filesystem::is_directory(path)) {
    fail(ErrorCode::kInvalidArgument, "input '{}' is a directory; give a JSONL file", path);
  }
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) fail(ErrorCode::kNotFound, "cannot open input '{}'", path);
}

JsonLineReader::~JsonLineReader() {
  if (fd_ > 0) ::close(fd_);
}

// Appends to buffer_ or notes the end; false if that would mean to wait and it may not.
bool JsonLineReader::read_more(bool may_wait) {
  if (!may_wait) {
    pollfd poll_fd{fd_, POLLIN, 0};
    if (::poll(&poll_fd, 1, 0) == 0) return false;
  }
  buffer_.erase(0, begin_);
  searched_ -= begin_;
  begin_ = 0;
  const size_t before = buffer_.size();
  buffer_.resize(before + kReadBytes);
  ssize_t count = 0;
  do {
    count = ::read(fd_, buffer_.data() + before, kReadBytes);
  } while (count < 0 && errno == EINTR);
  buffer_.resize(before + static_cast<size_t>(std::max<ssize_t>(count, 0)));
  if (count < 0) {
    fail(ErrorCode::kDataLoss, "cannot read {}: {}", name_, std::strerror(errno));
  }
  if (count == 0) at_end_ = true;
  return true;
}

// Moves the next line from buffer_ to text_; false if there is no whole one yet.
bool JsonLineReader::take_line() {
  const size_t end = buffer_.find('\n', searched_);
  searched_ = std::min(end, buffer_.size());
  if (searched_ - begin_ > kMaxLineBytes) {
    ++line_;
    fail(ErrorCode::kInvalidArgument, "{}: longer than {} bytes", where(), kMaxLineBytes);
  }
  if (end == std::string::npos && (!at_end_ || begin_ == buffer_.size())) return false;
  text_.assign(buffer_, begin_, searched_ - begin_);
  begin_ = std::min(searched_ + 1, buffer_.size());
  searched_ = begin_;
  ++line_;
  return true;
}

// The next line that is not blank; false if there is none, or none yet.
bool JsonLineReader::find_line(bool may_wait) {
  while (!has_text_) {
    if (take_line()) {
      has_text_ = text_.find_first_not_of(" \t\r") != std::string::npos;
    } else if (at_end_ || !read_more(may_wait)) {
      return false;
    }
  }
  return true;
}

bool JsonLineReader::ready() { return find_line(/*may_wait=*/false) || at_end_; }

bool JsonLineReader::next(OrderedJson& object) {
  if (!find_line(/*may_wait=*/true)) return false;
  has_text_ = false;
  object = parse_ordered_json(text_, where());
  if (!object.is_object()) {
    fail(ErrorCode::kInvalidArgument, "{}: not a JSON object", where());
  }
  return true;
}

std::string JsonLineReader::where() const { return fmt::format("{} line {}", name_, line_); }

TextOutput::TextOutput(const std::string& path) {
  if (path != "-") file_ = std::make_unique<PendingFile>(path);
}

void TextOutput::write_line(std::string_view line) {
  if (file_) {
    file_->write(line);
    file_->write("\n");
    return;
  }
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);  // main looks at the stream's state at the end
}

void TextOutput::flush() {
  if (!file_) std::fflush(stdout);  // main looks at the stream's state at the end
}

void TextOutput::finish() {
  if (file_) file_->commit();
}

std::vector<int32_t> parse_token_ids(const OrderedJson& value, int64_t limit,
                                     const std::string& what) {
  if (!value.is_array()) fail(ErrorCode::kInvalidArgument, "{} is not an array of ids", what);
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const OrderedJson& id : value) {
    const bool is_valid =
        id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() < limit;
    if (!is_valid) {
      fail(ErrorCode::kInvalidArgument, "{}[{}] is {}; want a token id from 0 to {}", what,
           ids.size(), id.dump().substr(0, 40), limit - 1);
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void refuse_other_keys(const OrderedJson& object, std::initializer_list<std::string_view> known,
                       const std::string& where) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      fail(ErrorCode::kInvalidArgument, "{}: unknown key '{}'; known are {}", where, key,
           fmt::join(known, ", "));
    }
  }
}

}  // namespace nibble
