#include "core/base/pending_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "core/base/fail.h"
#include "core/base/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// "out/" names the same directory as "out".
fs::path without_trailing_slash(fs::path path) {
  path = fs::absolute(path).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

// What a symbolic link names, there or not: the output goes there, and the link stays.
fs::path follow_links(fs::path path) {
  constexpr int kMostLinks = 40;
  std::error_code error;
  for (int i = 0; i < kMostLinks && fs::is_symlink(path, error); ++i) {
    path = without_trailing_slash(path.parent_path() / fs::read_symlink(path));
  }
  return path;
}

// A descriptor that holds the directory's lock.
int lock_directory(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    fail(ErrorCode::kInvalidArgument, "cannot open directory '{}': {}", path.string(),
         std::strerror(errno));
  }
  // File systems without locks are gone on with.
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(fd);
    fail(ErrorCode::kInvalidArgument,
         "'{}' is being filled by another process; wait for it, or choose another name",
         path.string());
  }
  return fd;
}

}  // namespace

PendingDirectory::PendingDirectory(fs::path final_path, Leftover leftover)
    : final_(follow_links(without_trailing_slash(std::move(final_path)))),
      temporary_(final_.string() + ".partial") {
  std::error_code error;
  if (fs::exists(final_, error) && !fs::is_directory(final_)) {
    fail(ErrorCode::kInvalidArgument, "output directory '{}' exists and is no directory",
         final_.string());
  }
  if (fs::exists(final_, error) && !fs::is_empty(final_)) {
    fail(ErrorCode::kInvalidArgument, "output directory '{}' exists and is not empty; {}",
         final_.string(),
         leftover == Leftover::kContinue && !fs::exists(temporary_)
             ? "nothing is left to go on from: it is complete, or something else"
             : "choose another name or remove it");
  }
  if (fs::exists(temporary_, error)) {
    if (leftover == Leftover::kRefuse) {
      fail(ErrorCode::kInvalidArgument,
           "'{}' is there: an earlier run is at work or was interrupted; add --resume to take its "
           "place, or remove it",
           temporary_.string());
    }
    lock_ = lock_directory(temporary_);
    kept_ = leftover == Leftover::kContinue;
    if (kept_) return;
    fs::remove_all(temporary_);
    ::close(lock_);
    lock_ = -1;
  }
  if (!fs::create_directories(temporary_, error) || error) {
    fail(ErrorCode::kInvalidArgument, "cannot create directory '{}': {}", temporary_.string(),
         error.message());
  }
  lock_ = lock_directory(temporary_);
}

PendingDirectory::~PendingDirectory() {
  std::error_code ignored;  // a destructor must not throw; the name says that it is partial
  if (!committed_ && !kept_) fs::remove_all(temporary_, ignored);
  if (lock_ >= 0) ::close(lock_);
}

void PendingDirectory::require_free_bytes(int64_t bytes) const {
  const auto available = static_cast<int64_t>(fs::space(temporary_).available);
  if (available < bytes) {
    fail(ErrorCode::kResourceExhausted,
         "'{}' needs {:.1f} MB, but its disk has only {:.1f} MB free; free space there or choose "
         "another directory",
         final_.string(), static_cast<double>(bytes) / 1e6, static_cast<double>(available) / 1e6);
  }
}

void PendingDirectory::commit() {
  if (fs::exists(final_)) fs::remove(final_);  // empty: checked on construction, or this throws
  publish_directory(temporary_, final_);
  committed_ = true;
}

}  // namespace nibble
