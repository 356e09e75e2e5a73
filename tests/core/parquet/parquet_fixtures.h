#pragma once

#include <cstdint>
#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "core/data/parquet_file.h"

namespace nibble {

/// A file that gen_fixtures.py wrote.
inline std::filesystem::path parquet_fixture(const std::string& name) {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/core/parquet/fixtures" / name;
}

inline std::filesystem::path parquet_program() {
  return std::filesystem::path(NIBBLE_BINARY_DIR) / "bin/nibble-parquet";
}

/// All records of a file.
inline std::vector<RecordText> read_all(RecordFile& file) {
  std::vector<int64_t> indices(static_cast<size_t>(file.num_records()));
  std::iota(indices.begin(), indices.end(), 0);
  std::vector<RecordText> records;
  file.read(indices, [&](size_t, RecordText record) { records.push_back(std::move(record)); });
  return records;
}

}  // namespace nibble
