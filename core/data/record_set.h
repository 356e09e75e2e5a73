#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/data/parquet_file.h"
#include "core/data/record_file.h"

namespace nibble {

/// The records of a *.jsonl or *.parquet file, or of all such files of a directory (links are
/// followed, folders in it and other files are not looked at), sorted by name, numbered through
/// from 0. One thread.
class RecordSet {
 public:
  /// Of a Parquet file the first of `columns` that it has is read. `parquet_program` is
  /// nibble-parquet. Throws Error{kNotFound} if there is no `path`, Error{kInvalidArgument} if it
  /// has no such file or no record, and what JsonlFile and ParquetFile throw.
  RecordSet(const std::filesystem::path& path, std::vector<std::string> columns,
            const std::filesystem::path& parquet_program);

  int64_t num_records() const { return ends_.back(); }

  /// The records `indices` (distinct), in their order: as many of the first ones as `max_bytes` of
  /// text hold, but at least one of them. It reads each file once, from front to back. Memory:
  /// max_bytes and one record.
  std::vector<RecordText> read(std::span<const int64_t> indices, int64_t max_bytes);

 private:
  ParquetProcess parquet_;  // starts when the first Parquet file is opened; before files_
  std::vector<std::unique_ptr<RecordFile>> files_;
  std::vector<int64_t> ends_;  // of files_: records up to and with it
};

}  // namespace nibble
