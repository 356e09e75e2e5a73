#include "core/base/file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "core/base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_file_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }
  fs::path directory_;
};

TEST_F(FileTest, AtomicWriteReplacesContentAndLeavesNoTemporary) {
  write_file_atomically(directory_ / "a", "old");
  write_file_atomically(directory_ / "a", "new");
  EXPECT_EQ(read_file(directory_ / "a", 100), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 1);
}

TEST_F(FileTest, AbandonedPendingFileLeavesNothing) {
  {
    PendingFile file(directory_ / "a");
    file.write("half");
  }
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(FileTest, MissingFileIsNotFoundAndNamed) {
  try {
    read_file(directory_ / "missing", 100);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_NE(std::string(error.what()).find("missing"), std::string::npos);
  }
}

TEST_F(FileTest, OversizedFileIsRefused) {
  write_file_atomically(directory_ / "a", "0123456789");
  EXPECT_THROW(read_file(directory_ / "a", 9), Error);
  EXPECT_EQ(read_file(directory_ / "a", 10).size(), 10u);
}

TEST_F(FileTest, MapShowsTheBytesAndAnEmptyFileMapsToNothing) {
  write_file_atomically(directory_ / "a", "bytes");
  write_file_atomically(directory_ / "empty", "");
  const MappedFile map(directory_ / "a");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size()),
            "bytes");
  EXPECT_TRUE(MappedFile(directory_ / "empty").bytes().empty());
  EXPECT_THROW(MappedFile(directory_ / "none"), Error);
}

}  // namespace
}  // namespace nibble
