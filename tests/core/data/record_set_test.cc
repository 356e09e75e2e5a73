#include "core/data/record_set.h"

#include <sys/stat.h>

#include "tests/core/data/data_folder.h"

namespace nibble {
namespace {

class Records : public DataFolder {
 protected:
  RecordSet open(const std::filesystem::path& path) const {
    return RecordSet(path, {"text"}, "no-parquet-here");
  }
};

std::vector<std::string> texts_of(const std::vector<RecordText>& records) {
  std::vector<std::string> texts;
  texts.reserve(records.size());
  for (const RecordText& record : records) texts.push_back(record.json);
  return texts;
}

TEST_F(Records, AreNumberedThroughFilesSortedByName) {
  write("b.jsonl", "4\n5\n");
  write("a.jsonl", "0\n1\n2\n3\n");
  write("c.jsonl", "\n");
  write("d.jsonl", "6");
  write("notes.txt", "7\n");
  write("e.json", "8\n");
  std::filesystem::create_directory(folder_ / "z.jsonl");
  RecordSet records = open(folder_);
  EXPECT_EQ(records.num_records(), 7);
  const std::vector<int64_t> indices = {6, 2, 5, 0, 4};
  EXPECT_EQ(texts_of(records.read(indices, 1000)),
            (std::vector<std::string>{"6", "2", "5", "0", "4"}));
  EXPECT_TRUE(records.read(indices, 1000)[2].where.ends_with("b.jsonl:2"));
}

TEST_F(Records, AsManyOfTheFirstAsFitAreRead) {
  std::string text;
  for (int i = 0; i < 10; ++i) text += std::string(10, static_cast<char>('0' + i)) + "\n";
  RecordSet records = open(write("a.jsonl", text));
  const std::vector<int64_t> indices = {9, 3, 0, 5, 8, 1};
  std::vector<std::string> expected;
  expected.reserve(indices.size());
  for (const int64_t i : indices) expected.emplace_back(10, static_cast<char>('0' + i));
  for (const size_t num_fitting : {0, 1, 2, 5, 6}) {
    const auto read = texts_of(records.read(indices, static_cast<int64_t>(10 * num_fitting + 9)));
    EXPECT_EQ(read, std::vector<std::string>(
                        expected.begin(),
                        expected.begin() + static_cast<int64_t>(std::max<size_t>(num_fitting, 1))));
  }
}

TEST_F(Records, LinksAreFollowed) {
  std::filesystem::create_directory(folder_ / "blobs");
  write("blobs/0a1b", "1\n2\n");
  std::filesystem::create_symlink("blobs/0a1b", folder_ / "a.jsonl");
  EXPECT_EQ(open(folder_).num_records(), 2);
}

TEST_F(Records, WhatHasNoneIsNamed) {
  expect_error(ErrorCode::kNotFound, {"none"}, [&] { open(folder_ / "none"); });
  expect_error(ErrorCode::kInvalidArgument, {folder_.string(), "*.jsonl", "*.parquet"},
               [&] { open(folder_); });
  const auto text = write("a.txt", "1\n");
  expect_error(ErrorCode::kInvalidArgument, {text.string(), "*.jsonl"}, [&] { open(text); });
  const auto pipe = folder_ / "pipe.jsonl";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_error(ErrorCode::kInvalidArgument, {pipe.string(), "regular file"}, [&] { open(pipe); });
  const auto empty = write("a.jsonl", "\n\n");
  expect_error(ErrorCode::kInvalidArgument, {empty.string(), "no records"}, [&] { open(empty); });
}

TEST_F(Records, WithoutTheProgramForParquetItIsNamed) {
  const auto path = write("a.parquet", "PAR1");
  expect_error(ErrorCode::kFailedPrecondition, {"no-parquet-here", "beside nibble"},
               [&] { open(path); });
}

}  // namespace
}  // namespace nibble
