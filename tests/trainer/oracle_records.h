#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/fail.h"
#include "tests/core/models/oracle_model.h"
#include "trainer/token_records.h"

// Records to train the tiny checkpoints of tests/oracles on, and a place to save to.

namespace nibble {

/// Every sequence of the fixture that has something to predict, as a text.
inline std::vector<TokenRecord> oracle_records(const std::string& name) {
  const OracleModel model(name);
  std::vector<TokenRecord> records;
  for (int s = 0; s < model.num_sequences(); ++s) {
    const std::vector<int32_t> ids = model.ids(s);
    if (ids.size() > 1) records.push_back({{ids[0]}, {ids.begin() + 1, ids.end()}});
  }
  return records;
}

inline std::vector<const TokenRecord*> pointers(const std::vector<TokenRecord>& records) {
  std::vector<const TokenRecord*> all;
  all.reserve(records.size());
  for (const TokenRecord& record : records) all.push_back(&record);
  return all;
}

/// A folder that goes with its owner.
struct TempFolder {
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "nibble_tr_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) fail(ErrorCode::kInternal, "no temporary folder");
    path = name;
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

}  // namespace nibble
