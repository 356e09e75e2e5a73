#include "core/checkpoint/hf_directory.h"

#include <algorithm>
#include <set>

#include "core/base/fail.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFiles = 4096;

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

Json read_hf_config(const fs::path& directory) {
  if (!fs::is_directory(directory)) {
    fail(ErrorCode::kNotFound,
         "model directory '{}' {}; give the directory of a Hugging Face "
         "checkpoint",
         directory.string(), fs::exists(directory) ? "is a file" : "does not exist");
  }
  if (!fs::exists(directory / "config.json")) {
    fail(ErrorCode::kNotFound,
         "'{}' has no config.json; give the directory of a Hugging Face checkpoint",
         directory.string());
  }
  Json config = read_json_file(directory / "config.json", 16 << 20);
  if (!config.is_object()) {
    fail(ErrorCode::kInvalidArgument, "'{}/config.json' is not a JSON object", directory.string());
  }
  return config;
}

HfDirectory::HfDirectory(const fs::path& directory)
    : path_(directory), config_(read_hf_config(directory)) {
  if (fs::exists(path_ / "model.safetensors.index.json")) {
    open_indexed();
  } else if (fs::exists(path_ / "model.safetensors")) {
    files_.emplace_back(path_ / "model.safetensors");
    for (const TensorInfo& info : files_[0].tensors()) file_of_[info.name] = 0;
  } else if (fs::exists(path_ / "meta.json")) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' is a training checkpoint; `nibble export --to int4 --input-dir {} --output-dir DIR` "
         "makes a model of it",
         path_.string(), path_.string());
  } else {
    fail(
        ErrorCode::kNotFound,
        "'{}' has neither model.safetensors nor model.safetensors.index.json; other weight formats "
        "(.bin, .pt) can carry code and are not read: convert them to safetensors first",
        path_.string());
  }
}

void HfDirectory::open_indexed() {
  const fs::path index_path = path_ / "model.safetensors.index.json";
  const Json index = read_json_file(index_path, 256 << 20);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    fail(ErrorCode::kInvalidArgument, "'{}' has no weight_map", index_path.string());
  }
  std::map<std::string, size_t> file_number;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string()) {
      fail(ErrorCode::kInvalidArgument, "'{}': file of '{}' is not a string", index_path.string(),
           name);
    }
    const std::string file_name = file.get<std::string>();
    if (file_name.empty() || file_name.find('/') != std::string::npos || file_name == "..") {
      fail(ErrorCode::kInvalidArgument, "'{}': file name '{}' leaves the directory",
           index_path.string(), file_name);
    }
    const auto [entry, is_new] = file_number.try_emplace(file_name, files_.size());
    if (is_new) {
      if (files_.size() == kMaxFiles) {
        fail(ErrorCode::kInvalidArgument, "'{}' names more than {} files", index_path.string(),
             kMaxFiles);
      }
      files_.emplace_back(path_ / file_name);
    }
    if (!files_[entry->second].contains(name)) {
      fail(ErrorCode::kInvalidArgument, "'{}' says tensor '{}' is in '{}', but it is not there",
           index_path.string(), name, file_name);
    }
    file_of_[name] = entry->second;
  }
}

TensorView HfDirectory::tensor(const std::string& name) const {
  const auto found = file_of_.find(name);
  if (found == file_of_.end()) {
    fail(ErrorCode::kNotFound, "checkpoint '{}' has no tensor '{}'", path_.string(), name);
  }
  return files_[found->second].tensor(name);
}

TensorView HfDirectory::tensor(const std::string& name, DType dtype,
                               const std::vector<int64_t>& shape) const {
  const TensorView view = tensor(name);
  const bool same_shape =
      std::equal(view.shape.begin(), view.shape.end(), shape.begin(), shape.end());
  if (view.dtype != dtype || !same_shape) {
    fail(ErrorCode::kInvalidArgument,
         "checkpoint '{}', tensor '{}': found {} {}, but config.json asks for {} {}",
         path_.string(), name, dtype_name(view.dtype), shape_text(view.shape), dtype_name(dtype),
         shape_text(shape));
  }
  return view;
}

std::vector<TensorInfo> HfDirectory::tensors() const {
  std::vector<TensorInfo> infos;
  infos.reserve(file_of_.size());
  for (const auto& [name, file] : file_of_) {
    const TensorView view = files_[file].tensor(name);
    infos.push_back({name, view.dtype, {view.shape.begin(), view.shape.end()}});
  }
  return infos;
}

HfWriter::HfWriter(const fs::path& directory, const std::vector<TensorInfo>& tensors,
                   int64_t max_file_bytes)
    : directory_(directory) {
  int64_t bytes = 0;
  for (const TensorInfo& info : tensors) {
    if (files_.empty() || (bytes > 0 && bytes + info.num_bytes() > max_file_bytes)) {
      files_.emplace_back();
      bytes = 0;
    }
    files_.back().push_back(info);
    bytes += info.num_bytes();
  }
  for (size_t file = 0; file < files_.size(); ++file) {
    if (!is_whole(file)) continue;
    for (const TensorInfo& info : files_[file]) written_.insert(info.name);
  }
  skip_written_files();
}

std::string HfWriter::file_name(size_t file) const {
  return files_.size() == 1
             ? "model.safetensors"
             : fmt::format("model-{:05}-of-{:05}.safetensors", file + 1, files_.size());
}

// A file has its name only when it is whole; it may be another model's.
bool HfWriter::is_whole(size_t file) const {
  const fs::path path = directory_ / file_name(file);
  if (!fs::exists(path)) return false;
  const SafetensorsFile found(path);
  const auto matches = [&](const TensorInfo& wanted) {
    if (!found.contains(wanted.name)) return false;
    const TensorView view = found.tensor(wanted.name);
    return view.dtype == wanted.dtype && std::equal(view.shape.begin(), view.shape.end(),
                                                    wanted.shape.begin(), wanted.shape.end());
  };
  return found.tensors().size() == files_[file].size() &&
         std::all_of(files_[file].begin(), files_[file].end(), matches);
}

void HfWriter::skip_written_files() {
  while (next_file_ < files_.size() && is_written(files_[next_file_].front().name)) ++next_file_;
}

void HfWriter::open_next_file() {
  NIBBLE_CHECK(next_file_ < files_.size(), "all {} files are written", files_.size());
  writer_ =
      std::make_unique<SafetensorsWriter>(directory_ / file_name(next_file_), files_[next_file_],
                                          std::map<std::string, std::string>{{"format", "pt"}});
  written_in_file_ = 0;
}

void HfWriter::write(const std::string& name, std::span<const std::byte> bytes) {
  if (!writer_) open_next_file();
  writer_->write(name, bytes);
  if (++written_in_file_ == files_[next_file_].size()) {
    writer_->finish();
    writer_.reset();
    ++next_file_;
    skip_written_files();
  }
}

void HfWriter::finish() {
  NIBBLE_CHECK(next_file_ == files_.size(), "only {} of {} files are complete", next_file_,
               files_.size());
  if (files_.size() == 1) return;
  int64_t total_bytes = 0;
  OrderedJson weight_map = OrderedJson::object();
  for (size_t i = 0; i < files_.size(); ++i) {
    for (const TensorInfo& info : files_[i]) {
      total_bytes += info.num_bytes();
      weight_map[info.name] = file_name(i);
    }
  }
  const OrderedJson index = {{"metadata", {{"total_size", total_bytes}}},
                             {"weight_map", weight_map}};
  write_file_atomically(directory_ / "model.safetensors.index.json", index.dump(2) + "\n");
}

void copy_side_files(const fs::path& from, const fs::path& to) {
  for (const char* name :
       {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json", "LICENSE"}) {
    if (!fs::is_regular_file(from / name)) continue;
    write_file_atomically(to / name, read_file(from / name, 256 << 20));
  }
}

}  // namespace nibble
