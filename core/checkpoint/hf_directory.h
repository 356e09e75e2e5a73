#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"

namespace nibble {

/// config.json of a Hugging Face model directory, which may be without weights. Throws
/// Error{kNotFound} or Error{kInvalidArgument} naming the file and what to do.
Json read_hf_config(const std::filesystem::path& directory);

/// A Hugging Face model directory: config.json and one or many safetensors files, mapped and
/// checked. Nothing in it is ever executed; pickled weights are refused.
class HfDirectory {
 public:
  /// Throws Error{kNotFound} or Error{kInvalidArgument} naming the file and what to do.
  explicit HfDirectory(const std::filesystem::path& directory);

  const std::filesystem::path& path() const { return path_; }
  const Json& config() const { return config_; }
  bool contains(const std::string& name) const { return file_of_.contains(name); }
  /// Throws Error{kNotFound} naming directory and tensor.
  TensorView tensor(const std::string& name) const;
  /// tensor(), checked for type and shape; the error names what was found and what was wanted.
  TensorView tensor(const std::string& name, DType dtype, const std::vector<int64_t>& shape) const;
  /// All tensors, in name order.
  std::vector<TensorInfo> tensors() const;

 private:
  void open_indexed();

  std::filesystem::path path_;
  Json config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, size_t> file_of_;
};

/// Writes a directory of tensors as Hugging Face lays them out, cut into files of at most
/// `max_file_bytes`, with model.safetensors.index.json when there is more than one. Add tensors in
/// the order they should be stored; the whole list must be known first.
class HfWriter {
 public:
  /// Files of an earlier writer of the same tensors stay as they are where they are whole.
  HfWriter(const std::filesystem::path& directory, const std::vector<TensorInfo>& tensors,
           int64_t max_file_bytes);
  /// True for a tensor of such a file; it is not to be written again.
  bool is_written(const std::string& name) const { return written_.contains(name); }
  void write(const std::string& name, std::span<const std::byte> bytes);
  /// Finishes the last file and writes the index.
  void finish();

 private:
  std::string file_name(size_t file) const;
  bool is_whole(size_t file) const;
  void skip_written_files();
  void open_next_file();

  std::filesystem::path directory_;
  std::vector<std::vector<TensorInfo>> files_;
  std::set<std::string> written_;
  size_t next_file_ = 0;
  size_t written_in_file_ = 0;
  std::unique_ptr<SafetensorsWriter> writer_;
};

/// Copies the small files that make a directory complete besides weights and config.json
/// (tokenizer, chat template, generation config), where they exist.
void copy_side_files(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace nibble
