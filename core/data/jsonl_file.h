#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/data/record_file.h"

namespace nibble {

/// JSON lines, ending in LF or CR LF; empty lines are no records. Opening it reads it once, to find
/// where lines begin: 16 bytes are kept for every 64 records.
class JsonlFile : public RecordFile {
 public:
  /// Throws Error{kNotFound} if it cannot be opened, Error{kInvalidArgument} for a line of more
  /// than kMaxRecordBytes, naming it.
  explicit JsonlFile(std::filesystem::path path);
  int64_t num_records() const override { return num_records_; }
  void read(std::span<const int64_t> indices,
            const std::function<void(size_t place, RecordText record)>& body) override;

 private:
  struct Mark {
    int64_t offset = 0;  // of a line that is a record
    int64_t line = 0;    // its number, from 1
  };
  void add_line(int64_t offset, int64_t line, int64_t num_bytes, char last);

  const std::filesystem::path path_;
  std::ifstream in_;
  int64_t num_records_ = 0;
  std::vector<Mark> marks_;  // of every 64th record
};

}  // namespace nibble
