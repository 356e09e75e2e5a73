#include "core/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int kMaxDims = 8;

int64_t checked_elements(const std::vector<int64_t>& shape, const std::string& what) {
  int64_t count = 1;
  for (const int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(count, dim, &count) || count > (int64_t{1} << 56)) {
      fail(ErrorCode::kInvalidArgument, "{}: impossible shape", what);
    }
  }
  return count;
}

int64_t unsigned_value(const Json& value, const std::string& what) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > (uint64_t{1} << 56)) {
    fail(ErrorCode::kInvalidArgument, "{}: want a non-negative integer, got {}", what,
         value.dump());
  }
  return static_cast<int64_t>(value.get<uint64_t>());
}

TensorInfo parse_info(const std::string& name, const Json& value, const std::string& what) {
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
      !value.contains("shape") || !value.contains("data_offsets")) {
    fail(ErrorCode::kInvalidArgument, "{}: want exactly dtype, shape and data_offsets", what);
  }
  TensorInfo info;
  info.name = name;
  if (!value["dtype"].is_string()) {
    fail(ErrorCode::kInvalidArgument, "{}: dtype is not a string", what);
  }
  info.dtype = parse_dtype(value["dtype"].get<std::string>(), what);
  if (!value["shape"].is_array() || value["shape"].size() > kMaxDims) {
    fail(ErrorCode::kInvalidArgument, "{}: shape is not a list of at most {} sizes", what,
         kMaxDims);
  }
  for (const Json& dim : value["shape"]) info.shape.push_back(unsigned_value(dim, what));
  checked_elements(info.shape, what);
  return info;
}

}  // namespace

int64_t TensorInfo::num_elements() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path), file_(path) {
  const auto bytes = file_.bytes();
  if (bytes.size() < 8) {
    fail(ErrorCode::kInvalidArgument, "'{}' is not a safetensors file: only {} bytes",
         path.string(), bytes.size());
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes) || header_bytes > bytes.size() - 8) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' is truncated or not a safetensors file: its header claims {} bytes, the file has {}",
         path.string(), header_bytes, bytes.size());
  }
  data_begin_ = 8 + static_cast<int64_t>(header_bytes);
  data_bytes_ = static_cast<int64_t>(bytes.size()) - data_begin_;
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  if (header.empty() || header.front() != '{') {
    fail(ErrorCode::kInvalidArgument, "'{}': the safetensors header must start with '{{'",
         path.string());
  }
  parse_header(header);
  check_coverage();
}

void SafetensorsFile::parse_header(std::string_view text) {
  const Json header = parse_json(text, path_.string());
  for (const auto& [name, value] : header.items()) {
    const std::string what = fmt::format("'{}', tensor '{}'", path_.string(), name);
    if (name == "__metadata__") {
      if (!value.is_object()) fail(ErrorCode::kInvalidArgument, "{}: not an object", what);
      for (const auto& [key, text_value] : value.items()) {
        if (!text_value.is_string()) {
          fail(ErrorCode::kInvalidArgument, "{}: value of '{}' is not a string", what, key);
        }
        metadata_[key] = text_value.get<std::string>();
      }
      continue;
    }
    Entry entry{parse_info(name, value, what)};
    const Json& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2) {
      fail(ErrorCode::kInvalidArgument, "{}: data_offsets is not a pair", what);
    }
    entry.begin = unsigned_value(offsets[0], what);
    const int64_t end = unsigned_value(offsets[1], what);
    if (end < entry.begin || end > data_bytes_) {
      fail(ErrorCode::kInvalidArgument,
           "{}: data_offsets [{}, {}] lie outside the file's {} data bytes; the file is truncated "
           "or damaged",
           what, entry.begin, end, data_bytes_);
    }
    if (end - entry.begin != entry.info.num_bytes()) {
      fail(ErrorCode::kInvalidArgument, "{}: {} bytes do not match shape and type ({} bytes)", what,
           end - entry.begin, entry.info.num_bytes());
    }
    entries_.emplace(name, std::move(entry));
  }
}

void SafetensorsFile::check_coverage() const {
  std::vector<const Entry*> order;
  order.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) {
    return std::pair(a->begin, a->info.num_bytes()) < std::pair(b->begin, b->info.num_bytes());
  });
  int64_t position = 0;
  for (const Entry* entry : order) {
    if (entry->begin != position) {
      fail(ErrorCode::kInvalidArgument, "'{}', tensor '{}': {} in the data at byte {}",
           path_.string(), entry->info.name, entry->begin < position ? "overlap" : "hole",
           std::min(position, entry->begin));
    }
    position += entry->info.num_bytes();
  }
  if (position != data_bytes_) {
    fail(ErrorCode::kInvalidArgument, "'{}': {} bytes after the last tensor belong to none",
         path_.string(), data_bytes_ - position);
  }
}

std::vector<TensorInfo> SafetensorsFile::tensors() const {
  std::vector<TensorInfo> infos;
  infos.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) infos.push_back(entry.info);
  return infos;
}

TensorView SafetensorsFile::tensor(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    fail(ErrorCode::kNotFound, "'{}' has no tensor '{}'", path_.string(), name);
  }
  const Entry& entry = found->second;
  return {entry.info.dtype, entry.info.shape,
          file_.bytes().subspan(static_cast<size_t>(data_begin_ + entry.begin),
                                static_cast<size_t>(entry.info.num_bytes()))};
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : tensors_(std::move(tensors)), file_(path) {
  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<std::string> names;
  int64_t offset = 0;
  for (const TensorInfo& info : tensors_) {
    NIBBLE_CHECK(names.insert(info.name).second, "tensor '{}' is listed twice", info.name);
    const int64_t end = offset + info.num_bytes();
    header[info.name] = {
        {"dtype", dtype_name(info.dtype)}, {"shape", info.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // aligns the data, as the reference writer does
  const uint64_t header_bytes = text.size();
  file_.write(std::as_bytes(std::span(&header_bytes, 1)));
  file_.write(text);
}

void SafetensorsWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  NIBBLE_CHECK(next_ < tensors_.size() && written_ == 0 &&
                   static_cast<int64_t>(bytes.size()) == tensors_[next_].num_bytes(),
               "tensor '{}' of {} bytes is not the next one of the list", name, bytes.size());
  if (bytes.empty()) {
    ++next_;
    return;
  }
  write_part(name, bytes);
}

void SafetensorsWriter::write_part(const std::string& name, std::span<const std::byte> bytes) {
  NIBBLE_CHECK(next_ < tensors_.size() && tensors_[next_].name == name,
               "tensor '{}' is not the next one of the list", name);
  written_ += static_cast<int64_t>(bytes.size());
  NIBBLE_CHECK(written_ <= tensors_[next_].num_bytes(), "tensor '{}' got too many bytes", name);
  file_.write(bytes);
  if (written_ == tensors_[next_].num_bytes()) {
    ++next_;
    written_ = 0;
  }
}

void SafetensorsWriter::finish() {
  while (next_ < tensors_.size() && tensors_[next_].num_bytes() == 0) ++next_;
  NIBBLE_CHECK(next_ == tensors_.size(), "only {} of {} tensors were written", next_,
               tensors_.size());
  file_.commit();
}

}  // namespace nibble
