#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"

namespace nibble {

/// Reads JSON objects, one a line, from a file or stdin. Empty lines are skipped. One thread.
class JsonLineReader {
 public:
  /// `path` "-" is stdin. Throws Error{kNotFound} if the file cannot be opened.
  explicit JsonLineReader(const std::string& path);
  JsonLineReader(const JsonLineReader&) = delete;
  JsonLineReader& operator=(const JsonLineReader&) = delete;
  ~JsonLineReader();
  /// False at the end. Throws Error{kInvalidArgument} naming file and line for a line that is no
  /// JSON object or has more than 64 MiB.
  bool next(OrderedJson& object);
  /// Whether next() would answer at once, rather than wait for somebody who still writes.
  bool ready();
  /// "data.jsonl line 3": the line that next() gave, until ready() or next() is called again.
  std::string where() const;

 private:
  bool find_line(bool may_wait);
  bool take_line();
  bool read_more(bool may_wait);

  std::string name_;
  int fd_ = 0;          // stdin unless the path says otherwise
  std::string buffer_;  // bytes read; those before begin_ are taken
  size_t begin_ = 0;
  size_t searched_ = 0;  // no line feed in buffer_ from begin_ to here
  bool at_end_ = false;
  std::string text_;  // the line found, if has_text_
  bool has_text_ = false;
  int64_t line_ = 0;
};

/// Text for stdout, or for a file that appears whole with finish() or not at all.
class TextOutput {
 public:
  /// `path` "-" is stdout.
  explicit TextOutput(const std::string& path);
  void write_line(std::string_view line);
  /// Hands what was written to whoever reads stdout; a file waits for finish().
  void flush();
  void finish();

 private:
  std::unique_ptr<PendingFile> file_;  // null: stdout
};

/// An array of token ids, each in [0, limit). Throws Error{kInvalidArgument} with `what`.
std::vector<int32_t> parse_token_ids(const OrderedJson& value, int64_t limit,
                                     const std::string& what);

/// Refuses keys that are not listed. Throws Error{kInvalidArgument} with `where` and the key.
void refuse_other_keys(const OrderedJson& object, std::initializer_list<std::string_view> known,
                       const std::string& where);

}  // namespace nibble
