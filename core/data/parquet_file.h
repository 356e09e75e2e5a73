#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/limited_process.h"
#include "core/base/line_buffer.h"
#include "core/data/record_file.h"

namespace nibble {

/// The program nibble-parquet (core/parquet/parquet_server.h), which reads Parquet files with
/// limits on memory and time: Arrow's libraries bring an OpenSSL and a Protobuf of their own, which
/// must not meet ours in one process, and a hostile file can only end that program. One thread.
class ParquetProcess {
 public:
  /// Starts nothing yet. The first of `columns` that a file has is read.
  ParquetProcess(std::filesystem::path program, std::vector<std::string> columns);

  /// Number of rows of `file`. Gives `body` the row of each of `rows` (ascending), a JSON object
  /// with the column's name as its only key, with its place in `rows`. Throws
  /// Error{kInvalidArgument} naming the file, and row and column where there is one: damaged, too
  /// much memory needed, no such column, a type that is not read, a row above kMaxRecordBytes;
  /// Error{kFailedPrecondition} if the program cannot be executed; Error{kDeadlineExceeded} if it
  /// says nothing for 10 minutes.
  int64_t read(const std::filesystem::path& file, std::span<const int64_t> rows,
               const std::function<void(size_t place, std::string json)>& body);

 private:
  void restart();
  int64_t exchange(std::span<const int64_t> rows,
                   const std::function<void(size_t place, std::string json)>& body);
  void send(std::string_view bytes);
  std::string receive_line();
  // Until the socket is ready for `events` of poll().
  void wait(short events);
  [[noreturn]] void fail_ended();

  const std::filesystem::path program_;
  const std::vector<std::string> columns_;
  std::filesystem::path file_;  // that is read
  std::optional<LimitedProcess> process_;
  LineBuffer lines_;
  bool is_idle_ = false;  // it runs and has said all there was to say
};

/// A Parquet file. Its records are named by row, from 0.
class ParquetFile : public RecordFile {
 public:
  /// Borrows the process. Throws Error{kNotFound} if there is no such file, and what
  /// ParquetProcess::read throws.
  ParquetFile(std::filesystem::path path, ParquetProcess& process);
  int64_t num_records() const override { return num_records_; }
  void read(std::span<const int64_t> indices,
            const std::function<void(size_t place, RecordText record)>& body) override;

 private:
  const std::filesystem::path path_;
  ParquetProcess& process_;
  const int64_t num_records_;
};

}  // namespace nibble
