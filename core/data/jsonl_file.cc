#include "core/data/jsonl_file.h"

#include <cstring>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int64_t kMarkEvery = 64;
constexpr size_t kBlockBytes = 1 << 20;

}  // namespace

JsonlFile::JsonlFile(std::filesystem::path path) : path_(std::move(path)), in_(path_) {
  if (!in_ || std::filesystem::is_directory(path_)) {
    fail(ErrorCode::kNotFound, "cannot open data file '{}'", path_.string());
  }
  std::string block(kBlockBytes, '\0');
  int64_t read_bytes = 0;
  int64_t begin = 0;  // of the line that has not ended
  int64_t line = 1;
  char last = '\0';  // byte of the block before
  while (in_) {
    in_.read(block.data(), std::ssize(block));
    const char* at = block.data();
    const char* const end = at + in_.gcount();
    while (const void* found = std::memchr(at, '\n', static_cast<size_t>(end - at))) {
      const char* const newline = static_cast<const char*>(found);
      at = newline + 1;
      const int64_t next = read_bytes + (at - block.data());
      add_line(begin, line++, next - begin - 1, newline > block.data() ? newline[-1] : last);
      begin = next;
    }
    read_bytes += in_.gcount();
    if (in_.gcount() > 0) last = end[-1];
    // Now, and not at its end: a file may be one endless line.
    if (read_bytes - begin > static_cast<int64_t>(kMaxRecordBytes)) break;
  }
  add_line(begin, line, read_bytes - begin, last);
  if (in_.bad()) fail(ErrorCode::kDataLoss, "cannot read data file '{}'", path_.string());
}

void JsonlFile::add_line(int64_t offset, int64_t line, int64_t num_bytes, char last) {
  if (num_bytes > static_cast<int64_t>(kMaxRecordBytes)) {
    fail(ErrorCode::kInvalidArgument, "{}:{}: more than {} bytes in a line", path_.string(), line,
         kMaxRecordBytes);
  }
  if (num_bytes == 0 || (num_bytes == 1 && last == '\r')) return;
  if (num_records_++ % kMarkEvery == 0) marks_.push_back({offset, line});
}

void JsonlFile::read(std::span<const int64_t> indices,
                     const std::function<void(size_t place, RecordText record)>& body) {
  int64_t next = num_records_;  // the record that comes next in in_
  int64_t line = 0;             // the line that was read last
  std::string text;
  for (size_t place = 0; place < indices.size(); ++place) {
    const int64_t index = indices[place];
    NIBBLE_CHECK(index >= 0 && index < num_records_, "record {} of {}", index, num_records_);
    if (const int64_t mark = index / kMarkEvery; next > index || next < mark * kMarkEvery) {
      in_.clear();
      in_.seekg(marks_[static_cast<size_t>(mark)].offset);
      line = marks_[static_cast<size_t>(mark)].line - 1;
      next = mark * kMarkEvery;
    }
    for (; next <= index; next += text.empty() ? 0 : 1, ++line) {
      if (!std::getline(in_, text) || text.size() > kMaxRecordBytes) {
        fail(ErrorCode::kInvalidArgument, "data file '{}' changed while it was read",
             path_.string());
      }
      if (text.ends_with('\r')) text.pop_back();
    }
    body(place, {fmt::format("{}:{}", path_.string(), line), text});
  }
}

}  // namespace nibble
