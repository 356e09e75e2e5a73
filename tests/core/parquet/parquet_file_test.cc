#include "core/data/parquet_file.h"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

#include "core/base/json.h"
#include "core/data/jsonl_file.h"
#include "tests/core/data/data_folder.h"
#include "tests/core/parquet/parquet_fixtures.h"

namespace nibble {
namespace {

class Parquet : public DataFolder {
 protected:
  ParquetProcess process_{parquet_program(), {"text", "messages"}};
};

std::vector<Json> parse_all(RecordFile& file) {
  std::vector<Json> values;
  for (const RecordText& record : read_all(file)) {
    values.push_back(parse_json(record.json, record.where));
  }
  return values;
}

TEST_F(Parquet, HoldsTheTextsOfTheJsonLinesInEveryCodecAndEncoding) {
  JsonlFile lines(parquet_fixture("texts.jsonl"));
  const std::vector<Json> expected = parse_all(lines);
  ASSERT_EQ(expected.size(), 300u);
  for (const char* kind : {"none", "snappy", "zstd", "gzip", "lz4", "brotli", "dictionary", "large",
                           "view", "delta", "and_chats"}) {
    ParquetFile file(parquet_fixture(fmt::format("texts_{}.parquet", kind)), process_);
    EXPECT_EQ(parse_all(file), expected) << kind;
  }
}

TEST_F(Parquet, HoldsTheChatsOfTheJsonLines) {
  JsonlFile lines(parquet_fixture("chats.jsonl"));
  const std::vector<Json> expected = parse_all(lines);
  ASSERT_EQ(expected.size(), 90u);
  for (const char* kind : {"nested", "large", "dictionary"}) {
    ParquetFile file(parquet_fixture(fmt::format("chats_{}.parquet", kind)), process_);
    EXPECT_EQ(parse_all(file), expected) << kind;
  }
  ParquetFile file(parquet_fixture("chats_json.parquet"), process_);
  const std::vector<Json> texts = parse_all(file);
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(parse_json(texts[i]["messages"].get<std::string>(), "chat"), expected[i]["messages"]);
  }
}

TEST_F(Parquet, GivesRowsOfAnyGroupInAnyRequest) {
  ParquetFile file(parquet_fixture("texts_zstd.parquet"), process_);
  const std::vector<RecordText> all = read_all(file);
  ASSERT_EQ(all.size(), 300u);
  EXPECT_TRUE(all[4].where.ends_with("texts_zstd.parquet: row 4 (from 0)")) << all[4].where;
  for (const std::vector<int64_t>& rows :
       {std::vector<int64_t>{299}, {0}, {69, 70, 71, 280}, {3, 64, 65, 139, 140}, {}, {70}}) {
    size_t count = 0;
    file.read(rows, [&](size_t place, const RecordText& record) {
      EXPECT_EQ(place, count++);
      EXPECT_EQ(record.json, all[static_cast<size_t>(rows[place])].json);
    });
    EXPECT_EQ(count, rows.size());
  }
}

TEST_F(Parquet, FirstColumnThatIsThereIsRead) {
  ParquetProcess ids(parquet_program(), {"none", "id"});
  ParquetFile file(parquet_fixture("texts_none.parquet"), ids);
  EXPECT_EQ(parse_all(file)[7], Json({{"id", 7}}));
  ParquetFile no_rows(parquet_fixture("no_rows.parquet"), process_);
  EXPECT_EQ(no_rows.num_records(), 0);
}

TEST_F(Parquet, NamesFileRowAndColumnOfWhatIsWrong) {
  struct Case {
    const char* file;
    std::vector<std::string> fragments;
  };
  for (const Case& bad : {Case{"bad_binary.parquet", {"row 0", "'text'", "binary"}},
                          {"bad_utf8.parquet", {"row 1", "'text'", "UTF-8"}},
                          {"bad_long_row.parquet", {"row 1", "'text'", "16777216"}},
                          {"bad_columns.parquet", {"'text' or 'messages'", "'prompt' 'answer'"}},
                          {"texts.jsonl", {"Parquet"}}}) {
    std::vector<std::string> fragments = bad.fragments;
    fragments.push_back(parquet_fixture(bad.file).string());
    expect_error(ErrorCode::kInvalidArgument, fragments, [&] {
      ParquetFile file(parquet_fixture(bad.file), process_);
      read_all(file);
    });
  }
  expect_error(ErrorCode::kNotFound, {"none.parquet"},
               [&] { ParquetFile(folder_ / "none.parquet", process_); });
  ParquetFile file(parquet_fixture("texts_none.parquet"), process_);
  expect_error(ErrorCode::kInvalidArgument, {"row 300"}, [&] {
    file.read(std::vector<int64_t>{299, 300}, [](size_t, const RecordText&) {});
  });
}

TEST_F(Parquet, WhatTheReaderOfRowsThrowsLeavesNothingBehind) {
  ParquetFile file(parquet_fixture("texts_none.parquet"), process_);
  const std::vector<RecordText> all = read_all(file);
  EXPECT_THROW(file.read(std::vector<int64_t>{1, 2, 3},
                         [](size_t, const RecordText&) { throw std::runtime_error("enough"); }),
               std::runtime_error);
  EXPECT_EQ(read_all(file)[5].json, all[5].json);
}

TEST_F(Parquet, AProgramThatDiesOrBabblesIsAnError) {
  for (const auto& [program, fragment] :
       {std::pair<const char*, const char*>{"/bin/false", "exit code 1"},
        {"/bin/true", "exit code 0"},
        {"/bin/cat", "number of rows"}}) {
    ParquetProcess process(program, {"text"});
    const auto path = parquet_fixture("texts_none.parquet");
    try {
      const ParquetFile file(path, process);
      ADD_FAILURE() << program << " read " << file.num_records();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace nibble
