#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "coordinator/worker_client.h"
#include "core/base/file.h"
#include "core/base/sha256.h"

namespace nibble {

/// A whole group that no step has trained on, with its samples as engines send them.
struct SavedGroup {
  GroupResult group;
  std::vector<std::string> parts;
};

/// Writes groups to a file beside a checkpoint, one after the other, so that only one is in memory.
/// The file appears when finish() returns. Errors as PendingFile. One thread.
///
/// Layout: the line kSavedGroupsMagic; for each group its summary (v1.GroupSummary), its parts
/// (v1.SampleGroupMessage) and an empty record; a record is its length (8 bytes, little-endian) and
/// its bytes.
class SavedGroupsWriter {
 public:
  explicit SavedGroupsWriter(const std::filesystem::path& path);
  void write(const SavedGroup& group);
  /// Returns the file's SHA-256, 64 hex digits.
  std::string finish();

 private:
  void put(std::string_view bytes);
  void put_record(std::string_view record);

  PendingFile file_;
  Sha256 sha_;
};

inline constexpr std::string_view kSavedGroupsMagic = "nibble groups 1\n";

/// Reads such a file, calling `take` for each group. Throws Error{kNotFound} if there is none,
/// Error{kDataLoss} if its hash is not `sha256` or it is not laid out as above; then nothing was
/// taken.
void read_saved_groups(const std::filesystem::path& path, const std::string& sha256,
                       const std::function<void(SavedGroup)>& take);

}  // namespace nibble
