#include "cli/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/base/fail.h"

namespace nibble {
namespace {

[[noreturn]] void fail_unusable(const std::filesystem::path& directory, std::error_code error) {
  const bool is_full = error == std::errc::no_space_on_device;
  fail(is_full ? ErrorCode::kResourceExhausted : ErrorCode::kInvalidArgument,
       "run directory '{}' cannot be written: {}; free space there or choose another run.directory",
       directory.string(), error.message());
}

}  // namespace

RunDirectoryLock::RunDirectoryLock(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) fail_unusable(directory, error);
  const std::filesystem::path path = directory / ".lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_unusable(directory, {errno, std::generic_category()});
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
  const std::error_code refused(errno, std::generic_category());
  ::close(fd_);
  if (refused != std::errc::operation_would_block) fail_unusable(directory, refused);
  fail(ErrorCode::kFailedPrecondition,
       "run directory '{}' is in use by another `nibble train`; wait for its end or choose another "
       "run.directory",
       directory.string());
}

RunDirectoryLock::~RunDirectoryLock() { ::close(fd_); }

}  // namespace nibble
