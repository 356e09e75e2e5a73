#include "core/base/pending_directory.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/base/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Leftover = PendingDirectory::Leftover;

class PendingDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_pending_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root_ = name;
  }
  void TearDown() override { fs::remove_all(root_); }
  fs::path root_;
};

TEST_F(PendingDirectoryTest, AppearsWithCommitOnly) {
  PendingDirectory directory(root_ / "out", Leftover::kRefuse);
  write_file_atomically(directory.path() / "a", "text");
  EXPECT_FALSE(fs::exists(root_ / "out"));
  directory.commit();
  EXPECT_EQ(read_file(root_ / "out/a", 100), "text");
  EXPECT_FALSE(fs::exists(root_ / "out.partial"));
}

TEST_F(PendingDirectoryTest, ALinkStaysAndWhatItNamesIsFilled) {
  fs::create_directory(root_ / "disk");
  fs::create_directory_symlink("disk/out", root_ / "link");  // names nothing yet
  for (const char* name : {"link", "link/"}) {
    PendingDirectory directory(root_ / name, Leftover::kRefuse);
    write_file_atomically(directory.path() / "a", "text");
    directory.commit();
    EXPECT_TRUE(fs::is_symlink(root_ / "link"));
    EXPECT_EQ(read_file(root_ / "disk/out/a", 100), "text");
    fs::remove(root_ / "disk/out/a");
  }
}

TEST_F(PendingDirectoryTest, AbandonedLeavesNothing) {
  {
    PendingDirectory directory(root_ / "out", Leftover::kRefuse);
    write_file_atomically(directory.path() / "a", "text");
  }
  EXPECT_TRUE(fs::is_empty(root_));
}

TEST_F(PendingDirectoryTest, TakesAnEmptyDirectoryAndATrailingSlash) {
  fs::create_directory(root_ / "out");
  PendingDirectory directory(root_ / "out/", Leftover::kRefuse);
  EXPECT_EQ(directory.path(), root_ / "out.partial");
  directory.commit();
  EXPECT_TRUE(fs::is_directory(root_ / "out"));
}

TEST_F(PendingDirectoryTest, RefusesATakenNameAndLeavesItAlone) {
  fs::create_directory(root_ / "out");
  write_file_atomically(root_ / "out/mine", "keep");
  EXPECT_THROW(PendingDirectory(root_ / "out", Leftover::kReplace), Error);
  EXPECT_EQ(read_file(root_ / "out/mine", 100), "keep");
  EXPECT_FALSE(fs::exists(root_ / "out.partial"));
}

TEST_F(PendingDirectoryTest, ReplacesALeftoverOnlyWhenTold) {
  fs::create_directory(root_ / "out.partial");
  write_file_atomically(root_ / "out.partial/half", "old");
  EXPECT_THROW(PendingDirectory(root_ / "out", Leftover::kRefuse), Error);
  EXPECT_TRUE(fs::exists(root_ / "out.partial/half"));
  const PendingDirectory directory(root_ / "out", Leftover::kReplace);
  EXPECT_TRUE(fs::is_empty(directory.path()));
}

TEST_F(PendingDirectoryTest, IsFilledByOneAtATime) {
  {
    const PendingDirectory first(root_ / "out", Leftover::kRefuse);
    write_file_atomically(first.path() / "half", "mine");
    EXPECT_THROW(PendingDirectory(root_ / "out", Leftover::kContinue), Error);
    EXPECT_THROW(PendingDirectory(root_ / "out", Leftover::kReplace), Error);
    EXPECT_EQ(read_file(first.path() / "half", 100), "mine");
  }
  EXPECT_NO_THROW(PendingDirectory(root_ / "out", Leftover::kRefuse));
}

TEST_F(PendingDirectoryTest, ADiskWithoutRoomIsExhaustedBeforeWriting) {
  const PendingDirectory directory(root_ / "out", Leftover::kRefuse);
  directory.require_free_bytes(1);
  try {
    directory.require_free_bytes(int64_t{1} << 60);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
  }
}

}  // namespace
}  // namespace nibble
