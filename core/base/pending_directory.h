#pragma once

#include <cstdint>
#include <filesystem>

namespace nibble {

/// A directory being filled under the temporary name "<final name>.partial"; commit() makes it
/// appear under its own name, whole. Without commit() the destructor removes it unless keep() was
/// called; a killed process leaves only the temporary name behind. Another process that wants the
/// same name is refused while this one lives. One thread.
class PendingDirectory {
 public:
  /// What to do with a "<final name>.partial" that an interrupted process left.
  enum class Leftover { kRefuse, kReplace, kContinue };

  /// Throws Error{kInvalidArgument} if `final_path` exists and is not an empty directory, or if
  /// there is a leftover and it is to be refused, or another process is filling it.
  PendingDirectory(std::filesystem::path final_path, Leftover leftover);
  PendingDirectory(const PendingDirectory&) = delete;
  PendingDirectory& operator=(const PendingDirectory&) = delete;
  ~PendingDirectory();

  /// Where to write.
  const std::filesystem::path& path() const { return temporary_; }
  const std::filesystem::path& final_path() const { return final_; }
  /// Throws Error{kResourceExhausted} naming both numbers if the disk has less free.
  void require_free_bytes(int64_t bytes) const;
  /// What is there is worth going on from: the destructor leaves it.
  void keep() { kept_ = true; }
  void commit();

 private:
  std::filesystem::path final_;
  std::filesystem::path temporary_;
  int lock_ = -1;  // held open: the lock goes with the process
  bool kept_ = false;
  bool committed_ = false;
};

}  // namespace nibble
