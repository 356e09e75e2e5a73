#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace nibble {

/// One column of a Parquet file, row by row. Memory: a page of each leaf of the column and 64 rows,
/// at most 2 GiB of Arrow's buffers. One thread.
///
/// Whatever is wrong is Error{kInvalidArgument} naming row and column where there are any, but not
/// the file. Arrow may crash on a hostile file: hence the program of its own (parquet_server.h).
class ParquetReader {
 public:
  /// Opens the file for the first of `columns` that it has.
  ParquetReader(const std::filesystem::path& file, const std::vector<std::string>& columns);
  ~ParquetReader();

  int64_t num_rows() const;

  /// A JSON object on one line with the column's name as its only key (see arrow_to_json for the
  /// value), at most kMaxRecordBytes. Rows that rise are cheapest: row groups without wanted rows
  /// are skipped, what lies between in one group is read.
  std::string row_json(int64_t row);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace nibble
