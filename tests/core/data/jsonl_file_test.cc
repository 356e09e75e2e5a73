#include "core/data/jsonl_file.h"

#include "tests/core/data/data_folder.h"

namespace nibble {
namespace {

class Jsonl : public DataFolder {};

std::vector<RecordText> read(JsonlFile& file, const std::vector<int64_t>& indices) {
  std::vector<RecordText> records;
  file.read(indices, [&](size_t place, RecordText record) {
    EXPECT_EQ(place, records.size());
    records.push_back(std::move(record));
  });
  return records;
}

TEST_F(Jsonl, GivesAnyRecordWithItsLine) {
  std::string text = "\n";  // record i is on line 2 i + 2: an empty line before each
  for (int i = 0; i < 1000; ++i) text += "{\"i\":" + std::to_string(i) + "}\n\n";
  JsonlFile file(write("a.jsonl", text));
  ASSERT_EQ(file.num_records(), 1000);
  for (const std::vector<int64_t>& indices : {std::vector<int64_t>{0, 1, 2},
                                              {63, 64, 65, 700, 999},
                                              {5},
                                              {999},
                                              {0, 127, 128, 900},
                                              {}}) {
    const auto records = read(file, indices);
    ASSERT_EQ(records.size(), indices.size());
    for (size_t k = 0; k < indices.size(); ++k) {
      EXPECT_EQ(records[k].json, "{\"i\":" + std::to_string(indices[k]) + "}");
      EXPECT_EQ(records[k].where,
                (folder_ / "a.jsonl").string() + ":" + std::to_string(2 * indices[k] + 2));
    }
  }
}

TEST_F(Jsonl, FindsLinesAcrossBlocksAndAtTheEnd) {
  const std::string big(900'000, 'x');  // reading goes in blocks of 1 MiB
  JsonlFile file(write("a.jsonl", big + "1\n" + big + "2\n\n" + big + "3"));
  ASSERT_EQ(file.num_records(), 3);
  const auto records = read(file, {0, 1, 2});
  EXPECT_TRUE(records[0].json == big + "1" && records[1].json == big + "2" &&
              records[2].json == big + "3");
  EXPECT_TRUE(records[2].where.ends_with(":4")) << records[2].where;
}

TEST_F(Jsonl, TakesLinesThatEndInCrLf) {
  std::string text = "\r\n";
  for (int i = 0; i < 200; ++i) text += std::to_string(i) + "\r\n\r\n";
  const std::string big((1 << 20) - 1 - text.size(),
                        'x');  // its CR ends a block, its LF begins one
  JsonlFile file(write("a.jsonl", text + big + "\r\n" + "\r\n" + "last\r"));
  ASSERT_EQ(file.num_records(), 202);
  const auto records = read(file, {0, 63, 64, 199, 200, 201});
  EXPECT_EQ(records[0].json, "0");
  EXPECT_EQ(records[1].json, "63");
  EXPECT_EQ(records[2].json, "64");
  EXPECT_EQ(records[3].json, "199");
  EXPECT_TRUE(records[4].json == big);
  EXPECT_EQ(records[5].json, "last");
  EXPECT_TRUE(records[2].where.ends_with(":130")) << records[2].where;
}

TEST_F(Jsonl, RefusesWhatIsTooLongMissingOrChanged) {
  const auto path = write("a.jsonl", "{}\n" + std::string(kMaxRecordBytes + 1, 'x') + "\n");
  expect_error(ErrorCode::kInvalidArgument, {path.string() + ":2", "16777216"},
               [&] { JsonlFile{path}; });
  write("a.jsonl", "{}\n" + std::string(kMaxRecordBytes, 'x'));
  EXPECT_EQ(JsonlFile(path).num_records(), 2);
  expect_error(ErrorCode::kNotFound, {"none.jsonl"}, [&] { JsonlFile{folder_ / "none.jsonl"}; });
  expect_error(ErrorCode::kNotFound, {}, [&] { JsonlFile{folder_}; });
  write("a.jsonl", "1\n2\n3\n");
  JsonlFile file(path);
  std::filesystem::resize_file(path, 2);
  expect_error(ErrorCode::kInvalidArgument, {path.string(), "changed"}, [&] { read(file, {2}); });
  EXPECT_EQ(JsonlFile(write("b.jsonl", "")).num_records(), 0);
}

}  // namespace
}  // namespace nibble
