#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

/// Reads a whole file of at most `max_bytes`. Throws Error{kNotFound} if it cannot be opened,
/// Error{kInvalidArgument} if it is larger.
std::string read_file(const std::filesystem::path& path, int64_t max_bytes);

/// Writes a file so that a crash leaves either the old content or the new, never a mixture:
/// temporary name in the same directory, fsync, rename, fsync of the directory. Throws
/// Error{kResourceExhausted} when the disk is full, Error{kInternal} on other I/O errors, and
/// removes the temporary file in both cases.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

/// Renames a finished directory to its final name and makes that durable. A directory `to` that is
/// there is replaced and removed: where the file system can exchange names a crash leaves the one
/// or the other under `to`, elsewhere perhaps neither.
void publish_directory(const std::filesystem::path& from, const std::filesystem::path& to);

/// A file being written without a name; commit() makes it appear under `path` durably. Without
/// commit(), and if the process is killed, nothing is left (where the file system has no nameless
/// files, a killed process leaves "path.tmp.PID"). A symbolic link is followed: the file it names
/// is replaced. A device, FIFO or socket is written to as it is. One thread.
class PendingFile {
 public:
  explicit PendingFile(std::filesystem::path path);
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;
  ~PendingFile();
  /// Appends bytes. Errors as in write_file_atomically.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  void open_stream();
  void open_temporary();

  enum class Kind { kStream, kNameless, kNamed };
  std::filesystem::path path_;
  std::filesystem::path temporary_;  // a name beside path_
  Kind kind_ = Kind::kNamed;
  int fd_ = -1;
};

/// A read-only memory map of a whole file. Movable; unmapped by the destructor.
class MappedFile {
 public:
  /// Throws Error{kNotFound} when the file cannot be opened. An empty file maps to an empty span.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nibble
