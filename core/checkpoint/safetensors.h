#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/checkpoint/dtype.h"

namespace nibble {

/// Name, type and shape of a stored tensor.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kBf16;
  std::vector<int64_t> shape;
  int64_t num_elements() const;
  int64_t num_bytes() const { return num_elements() * dtype_bytes(dtype); }
};

/// A tensor inside a mapped file; the file must outlive it. Bytes are little-endian, row-major.
struct TensorView {
  DType dtype = DType::kBf16;
  std::span<const int64_t> shape;
  std::span<const std::byte> bytes;

  /// The bytes as elements of T. Wants sizeof(T) to match; safetensors data may be unaligned for
  /// T, which x86 loads tolerate and memcpy handles.
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

/// A memory-mapped safetensors file, checked completely on opening: header size and JSON, types,
/// shapes, and that the tensors cover the data exactly, without holes or overlap.
class SafetensorsFile {
 public:
  /// Throws Error{kNotFound} for a missing file, Error{kInvalidArgument} naming file and tensor
  /// for anything the format forbids (truncated file, overlapping or out-of-range offsets, ...).
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  bool contains(const std::string& name) const { return entries_.contains(name); }
  /// In name order.
  std::vector<TensorInfo> tensors() const;
  /// Throws Error{kNotFound} naming file and tensor.
  TensorView tensor(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  struct Entry {
    TensorInfo info;
    int64_t begin = 0;  // bytes from the start of the data
  };
  void parse_header(std::string_view text);
  void check_coverage() const;

  std::filesystem::path path_;
  MappedFile file_;
  int64_t data_begin_ = 0;
  int64_t data_bytes_ = 0;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes one safetensors file: the header first, then every tensor in the order given. The file
/// appears under its name only with finish(); otherwise nothing is left behind.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata);
  /// Appends the next tensor of the list. `name` and the byte count must match it.
  void write(const std::string& name, std::span<const std::byte> bytes);
  /// Appends a part of the next tensor; the parts must add up to it.
  void write_part(const std::string& name, std::span<const std::byte> bytes);
  void finish();

 private:
  std::vector<TensorInfo> tensors_;
  size_t next_ = 0;
  int64_t written_ = 0;  // bytes of tensors_[next_] so far
  PendingFile file_;
};

}  // namespace nibble
