#include "core/base/file.h"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
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

TEST_F(FileTest, AKilledWriterLeavesNothing) {
  if (::open(directory_.c_str(), O_TMPFILE | O_WRONLY, 0600) < 0)
    GTEST_SKIP() << "no nameless files";
  const pid_t child = ::fork();
  if (child == 0) {
    PendingFile file(directory_ / "killed");
    file.write("half");
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(fs::is_empty(directory_));
}

TEST_F(FileTest, ALinkIsFollowedToTheFileItNamesAlsoIfThatIsYetToBeMade) {
  fs::create_directory(directory_ / "there");
  fs::create_symlink("there/target", directory_ / "link");
  for (const char* content : {"one", "two"}) {
    write_file_atomically(directory_ / "link", content);
    EXPECT_TRUE(fs::is_symlink(directory_ / "link"));
    EXPECT_EQ(read_file(directory_ / "there" / "target", 100), content);
  }
  fs::create_symlink("b", directory_ / "a");
  fs::create_symlink("a", directory_ / "b");
  EXPECT_THROW(write_file_atomically(directory_ / "a", "x"), Error);
}

TEST_F(FileTest, DevicesAndFifosAreWrittenToNotReplaced) {
  const fs::path fifo = directory_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const int reader = ::open(fifo.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  write_file_atomically(fifo, "through");
  char buffer[16] = {};
  EXPECT_EQ(::read(reader, buffer, sizeof buffer), 7);
  EXPECT_STREQ(buffer, "through");
  ::close(reader);
  EXPECT_TRUE(fs::is_fifo(fifo));
  write_file_atomically("/dev/null", "gone");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  try {
    write_file_atomically("/dev/full", "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
  }
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
