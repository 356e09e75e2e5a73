#include "core/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

[[noreturn]] void fail_errno(const char* what, const std::filesystem::path& path, int error) {
  ErrorCode code = ErrorCode::kInternal;
  const char* advice = "";
  if (error == ENOENT || error == ENOTDIR) code = ErrorCode::kNotFound;
  if (error == EACCES || error == EPERM || error == EISDIR || error == EROFS) {
    code = ErrorCode::kInvalidArgument;
  }
  if (error == ENOSPC || error == EDQUOT) {
    code = ErrorCode::kResourceExhausted;
    advice = "; free space there or choose another directory";
  }
  fail(code, "cannot {} '{}': {}{}", what, path.string(), std::strerror(error), advice);
}

void sync_directory(const std::filesystem::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_errno("open directory", directory, errno);
  const int status = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  if (status != 0) fail_errno("sync directory", directory, error);
}

std::filesystem::path parent_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

std::string read_file(const std::filesystem::path& path, int64_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno("open", path, errno);
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = ::read(fd, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      ::close(fd);
      fail_errno("read", path, error);
    }
    if (count == 0) break;
    content.append(buffer, static_cast<size_t>(count));
    if (static_cast<int64_t>(content.size()) > max_bytes) {
      ::close(fd);
      fail(ErrorCode::kInvalidArgument, "file '{}' is larger than the {} bytes allowed for it",
           path.string(), max_bytes);
    }
  }
  ::close(fd);
  return content;
}

PendingFile::PendingFile(std::filesystem::path path) : path_(std::move(path)) {
  constexpr int kMaxLinks = 40;  // Linux's own limit
  std::error_code error;
  for (int links = 0; std::filesystem::is_symlink(path_, error); ++links) {
    if (links == kMaxLinks) fail_errno("follow", path_, ELOOP);
    path_ = parent_of(path_) / std::filesystem::read_symlink(path_);
  }
  const auto status = std::filesystem::status(path_, error);
  if (std::filesystem::is_directory(status)) fail_errno("write", path_, EISDIR);
  if (std::filesystem::is_other(status)) {
    open_stream();
  } else {
    open_temporary();
  }
}

void PendingFile::open_stream() {
  kind_ = Kind::kStream;
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd_ < 0) fail_errno("open", path_, errno);
}

void PendingFile::open_temporary() {
  temporary_ = path_.string() + fmt::format(".tmp.{}", ::getpid());
  kind_ = Kind::kNameless;
  if (std::filesystem::exists("/proc/self/fd")) {  // commit() names the file through it
    fd_ = ::open(parent_of(path_).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0644);
    if (fd_ >= 0) return;
  }
  kind_ = Kind::kNamed;
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno("create", path_, errno);
}

PendingFile::~PendingFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  if (kind_ == Kind::kNamed) ::unlink(temporary_.c_str());
}

void PendingFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno("write", path_, errno);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void PendingFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void PendingFile::commit() {
  if (kind_ == Kind::kStream) {
    if (::close(std::exchange(fd_, -1)) != 0) fail_errno("write", path_, errno);
    return;
  }
  if (::fsync(fd_) != 0) fail_errno("sync", path_, errno);
  if (kind_ == Kind::kNameless) {
    // A name only now, and one beside the final one: linkat() does not replace what is there.
    ::unlink(temporary_.c_str());
    const std::string open_file = fmt::format("/proc/self/fd/{}", fd_);
    if (::linkat(AT_FDCWD, open_file.c_str(), AT_FDCWD, temporary_.c_str(), AT_SYMLINK_FOLLOW) !=
        0) {
      fail_errno("create", path_, errno);
    }
  }
  const int closed = ::close(std::exchange(fd_, -1));
  if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail_errno("rename to", path_, error);
  }
  sync_directory(parent_of(path_));
}

void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
  PendingFile file(path);
  file.write(content);
  file.commit();
}

void publish_directory(const std::filesystem::path& from, const std::filesystem::path& to) {
  sync_directory(from);
  const bool replaces = std::filesystem::exists(to);
  const bool exchanged =
      replaces && ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0;
  if (replaces && !exchanged) std::filesystem::remove_all(to);
  if (!exchanged && ::rename(from.c_str(), to.c_str()) != 0) fail_errno("rename to", to, errno);
  sync_directory(parent_of(to));
  if (exchanged) std::filesystem::remove_all(from);
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno("open", path, errno);
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    fail(ErrorCode::kInvalidArgument, "'{}' is not a regular file", path.string());
  }
  size_ = static_cast<size_t>(info.st_size);
  if (size_ > 0) {
    void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    if (mapped == MAP_FAILED) {
      ::close(fd);
      fail_errno("map", path, error);
    }
    data_ = static_cast<const std::byte*>(mapped);
  }
  ::close(fd);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace nibble
