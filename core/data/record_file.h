#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

namespace nibble {

/// The longest record, as JSON text.
inline constexpr size_t kMaxRecordBytes = 16 << 20;

/// One record as it was read; whether `json` is well formed is for parse_json to say.
struct RecordText {
  std::string where;  ///< "data.jsonl:3", for messages
  std::string json;   ///< an object, as text
};

/// A data file whose records are numbered from 0 and read in part. One thread.
class RecordFile {
 public:
  virtual ~RecordFile() = default;
  virtual int64_t num_records() const = 0;
  /// Gives `body` the record of each of `indices` (ascending, no number twice) with its place in
  /// `indices`. Throws Error{kInvalidArgument} naming the file where it is damaged or has changed
  /// since it was opened. What `body` throws passes.
  virtual void read(std::span<const int64_t> indices,
                    const std::function<void(size_t place, RecordText record)>& body) = 0;
};

}  // namespace nibble
