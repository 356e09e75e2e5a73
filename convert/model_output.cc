#include "convert/model_output.h"

#include <sys/stat.h>

#include "core/base/file.h"
#include "core/models/checkpoint_tensors.h"

namespace nibble {
namespace {

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kSideFileBytes = 32 << 20;  // tokenizer and the like, with room to spare

// What an interrupted run left counts.
int64_t bytes_in(const std::filesystem::path& directory) {
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    struct stat info {};
    if (entry.is_regular_file() && ::stat(entry.path().c_str(), &info) == 0) {
      bytes += int64_t{info.st_blocks} * 512;  // of a sparse file what it occupies
    }
  }
  return bytes;
}

// Before the writer creates its first file.
const PendingDirectory& prepared(const PendingDirectory& directory,
                                 const std::vector<TensorInfo>& tensors,
                                 const std::function<void(const std::filesystem::path&)>& claim) {
  directory.require_free_bytes(total_bytes(tensors) + kSideFileBytes - bytes_in(directory.path()));
  if (claim) claim(directory.path());
  return directory;
}

}  // namespace

void ModelOutput::require_free_bytes(int64_t bytes) const {
  directory_.require_free_bytes(bytes - bytes_in(directory_.path()));
}

int64_t total_bytes(const std::vector<TensorInfo>& tensors) {
  int64_t bytes = 0;
  for (const TensorInfo& info : tensors) bytes += info.num_bytes();
  return bytes;
}

OrderedJson read_ordered_config(const std::filesystem::path& directory) {
  const auto path = directory / "config.json";
  return parse_ordered_json(read_file(path, kMaxConfigBytes), path.string());
}

std::vector<TensorInfo> model_tensors(const ParameterTable& table, const QuantizationPlan& plan) {
  std::vector<TensorInfo> tensors;
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    if (!plan.quantized[static_cast<size_t>(i)]) {
      tensors.push_back({p.name(), DType::kBf16, stored_shape(p)});
      continue;
    }
    const int64_t words = p.cols * plan.config.bits / 32;
    tensors.push_back({p.module + ".weight_packed", DType::kI32, {p.rows, words}});
    tensors.push_back(
        {p.module + ".weight_scale", DType::kBf16, {p.rows, p.cols / plan.config.group_size}});
    tensors.push_back({p.module + ".weight_shape", DType::kI64, {2}});
  }
  return tensors;
}

ModelOutput::ModelOutput(const Place& place, const std::vector<TensorInfo>& tensors,
                         const std::function<void(const std::filesystem::path&)>& claim)
    : directory_(place.directory, place.leftover),
      writer_(prepared(directory_, tensors, claim).path(), tensors, place.max_file_bytes) {}

void ModelOutput::write_packed(const ParameterSpec& parameter, std::span<const uint32_t> words,
                               std::span<const uint16_t> scale) {
  write(parameter.module + ".weight_packed", words);
  write(parameter.module + ".weight_scale", scale);
  write(parameter.module + ".weight_shape", std::vector<int64_t>{parameter.rows, parameter.cols});
}

void ModelOutput::finish(const std::filesystem::path& from, const OrderedJson& config,
                         const std::function<void()>& clean_up) {
  writer_.finish();
  if (!from.empty()) copy_side_files(from, directory_.path());
  write_file_atomically(directory_.path() / "config.json", config.dump(2) + "\n");
  if (clean_up) clean_up();
  directory_.commit();
}

}  // namespace nibble
