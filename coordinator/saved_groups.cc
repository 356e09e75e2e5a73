#include "coordinator/saved_groups.h"

#include <optional>
#include <utility>

#include "coordinator/group_codec.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

// As an RPC of it.
constexpr uint64_t kMostRecordBytes = 64 << 20;

std::string length_bytes(uint64_t length) {
  std::string bytes(sizeof length, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(length & 0xffu);
    length >>= 8;
  }
  return bytes;
}

// Takes records off the front of what is left of a file.
class Records {
 public:
  Records(std::string_view left, const std::filesystem::path& path) : left_(left), path_(path) {}
  bool at_end() const { return left_.empty(); }
  std::string_view next() {
    constexpr size_t kLength = sizeof(uint64_t);
    if (left_.size() < kLength) refuse();
    uint64_t length = 0;
    for (size_t i = kLength; i-- > 0;) length = length << 8 | static_cast<uint8_t>(left_[i]);
    left_.remove_prefix(kLength);
    if (length > kMostRecordBytes || length > left_.size()) refuse();
    const std::string_view record = left_.substr(0, length);
    left_.remove_prefix(length);
    return record;
  }
  [[noreturn]] void refuse() const {
    fail(ErrorCode::kDataLoss, "'{}' is damaged: no file of saved groups", path_.string());
  }

 private:
  std::string_view left_;
  const std::filesystem::path& path_;
};

SavedGroup read_group(Records& records) {
  std::optional<GroupResult> summary = decode_group(records.next());
  if (!summary || summary->samples.empty()) records.refuse();
  SavedGroup saved{std::move(*summary), {}};
  while (true) {
    const std::string_view part = records.next();
    if (part.empty()) return saved;
    saved.parts.emplace_back(part);
  }
}

}  // namespace

SavedGroupsWriter::SavedGroupsWriter(const std::filesystem::path& path) : file_(path) {
  put(kSavedGroupsMagic);
}

void SavedGroupsWriter::put(std::string_view bytes) {
  sha_.update(bytes);
  file_.write(bytes);
}

void SavedGroupsWriter::put_record(std::string_view record) {
  put(length_bytes(record.size()));
  put(record);
}

void SavedGroupsWriter::write(const SavedGroup& group) {
  put_record(encode_group(group.group));
  for (const std::string& part : group.parts) put_record(part);
  put_record({});
}

std::string SavedGroupsWriter::finish() {
  file_.commit();
  return sha_.finish();
}

void read_saved_groups(const std::filesystem::path& path, const std::string& sha256,
                       const std::function<void(SavedGroup)>& take) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  Sha256 sha;
  sha.update(bytes);
  if (sha.finish() != sha256) {
    fail(ErrorCode::kDataLoss, "'{}' is not what the checkpoint was saved with", path.string());
  }
  Records records(text, path);
  if (!text.starts_with(kSavedGroupsMagic)) records.refuse();
  // Everything is looked at before anything is taken.
  for (const bool takes : {false, true}) {
    Records left(text.substr(kSavedGroupsMagic.size()), path);
    while (!left.at_end()) {
      SavedGroup group = read_group(left);
      if (takes) take(std::move(group));
    }
  }
}

}  // namespace nibble
