#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"

namespace nibble {

/// Reads JSON objects, one a line, from a file or stdin. Empty lines are skipped.
class JsonLineReader {
 public:
  /// `path` "-" is stdin. Throws Error{kNotFound} if the file cannot be opened.
  explicit JsonLineReader(const std::string& path);
  /// False at the end. Throws Error{kInvalidArgument} naming file and line for a line that is no
  /// JSON object or has more than 64 MiB.
  bool next(OrderedJson& object);
  /// "data.jsonl line 3": the line last read.
  std::string where() const;

 private:
  std::string name_;
  std::ifstream file_;
  std::istream* stream_;
  int64_t line_ = 0;
};

/// Text for stdout, or for a file that appears whole with finish() or not at all.
class TextOutput {
 public:
  /// `path` "-" is stdout.
  explicit TextOutput(const std::string& path);
  void write_line(std::string_view line);
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
