#include <algorithm>
#include <fstream>
#include <iostream>

#include "core/base/splitmix64.h"
#include "tests/core/data/data_folder.h"
#include "tests/core/parquet/parquet_fixtures.h"

namespace nibble {
namespace {

// Cuts it short, or changes up to four bytes; most often near the end, where the metadata is.
std::string damaged(std::string bytes, uint64_t& state) {
  const auto place = [&] {
    const size_t reach =
        splitmix64(state) % 2 == 0 ? std::min<size_t>(bytes.size(), 600) : bytes.size();
    return bytes.size() - 1 - splitmix64(state) % reach;
  };
  if (splitmix64(state) % 8 == 0) {
    bytes.resize(place());
    return bytes;
  }
  for (uint64_t changes = 1 + splitmix64(state) % 4; changes > 0; --changes) {
    bytes[place()] = static_cast<char>(splitmix64(state));
  }
  return bytes;
}

class DamagedParquet : public DataFolder {};

TEST_F(DamagedParquet, IsReadOrRefusedByNameAndHarmsNobody) {
  ParquetProcess process(parquet_program(), {"text", "messages"});
  uint64_t state = 11;
  int num_refused = 0;
  int num_deaths = 0;
  for (const std::string kind :
       {"texts_zstd", "texts_snappy", "texts_dictionary", "texts_delta", "chats_nested"}) {
    const std::string bytes = read_file(parquet_fixture(kind + ".parquet"), 1 << 20);
    for (int i = 0; i < 400; ++i) {
      const auto path = folder_ / (kind + std::to_string(i) + ".parquet");
      std::ofstream(path, std::ios::binary) << damaged(bytes, state);
      try {
        ParquetFile file(path, process);
        std::vector<int64_t> rows = {0, 1, 69, 70, 250};
        while (!rows.empty() && rows.back() >= file.num_records()) rows.pop_back();
        file.read(rows, [](size_t, const RecordText&) {});
      } catch (const Error& error) {
        const std::string what = error.what();
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << what;
        EXPECT_NE(what.find(path.string()), std::string::npos) << what;
        ++num_refused;
        if (what.find("ended with") != std::string::npos) ++num_deaths;
      }
      std::filesystem::remove(path);
    }
  }
  EXPECT_GT(num_refused, 500);  // or the damage is none
  std::cout << num_refused << " of 2000 refused, the reader died of " << num_deaths << '\n';
  // It reads on.
  ParquetFile whole(parquet_fixture("texts_zstd.parquet"), process);
  EXPECT_EQ(read_all(whole).size(), 300u);
}

}  // namespace
}  // namespace nibble
