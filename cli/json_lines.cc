#include "cli/json_lines.h"

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxLineBytes = 64 << 20;

// One line without its "\n"; false at the end. Bounded, unlike std::getline.
bool read_line(std::istream& stream, std::string& line, const std::string& where) {
  line.clear();
  std::streambuf& buffer = *stream.rdbuf();
  using Traits = std::char_traits<char>;
  for (int c = buffer.sbumpc();; c = buffer.sbumpc()) {
    if (c == Traits::eof()) return !line.empty();
    if (c == '\n') return true;
    if (line.size() == kMaxLineBytes) {
      fail(ErrorCode::kInvalidArgument, "{}: longer than {} bytes", where, kMaxLineBytes);
    }
    line += static_cast<char>(c);
  }
}

}  // namespace

JsonLineReader::JsonLineReader(const std::string& path)
    : name_(path == "-" ? "stdin" : path), stream_(&std::cin) {
  if (path == "-") return;
  if (std::filesystem::is_directory(path)) {
    fail(ErrorCode::kInvalidArgument, "input '{}' is a directory; give a JSONL file", path);
  }
  file_.open(path, std::ios::binary);
  if (!file_) fail(ErrorCode::kNotFound, "cannot open input '{}'", path);
  stream_ = &file_;
}

bool JsonLineReader::next(OrderedJson& object) {
  std::string line;
  while (true) {
    ++line_;
    if (!read_line(*stream_, line, where())) return false;
    if (line.find_first_not_of(" \t\r") != std::string::npos) break;
  }
  object = parse_ordered_json(line, where());
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
