#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/base/pending_directory.h"
#include "core/checkpoint/hf_directory.h"
#include "core/spec/parameters.h"
#include "core/spec/quantization.h"

namespace nibble {

/// Told after each parameter: how many bytes of the input are done, of how many, and its name.
using ConvertProgress =
    std::function<void(int64_t done_bytes, int64_t total_bytes, const std::string& name)>;

/// The config.json of a directory with its keys in order.
OrderedJson read_ordered_config(const std::filesystem::path& directory);

/// What a directory of a model holds, in order: BF16, or packed words, scales and shape for what
/// `plan` quantizes.
std::vector<TensorInfo> model_tensors(const ParameterTable& table, const QuantizationPlan& plan);

int64_t total_bytes(const std::vector<TensorInfo>& tensors);

/// A Hugging Face directory being written: weights, then side files, config.json last, so that
/// nothing looks complete too early; under its name only after finish().
class ModelOutput {
 public:
  struct Place {
    std::filesystem::path directory;
    int64_t max_file_bytes = 0;  ///< of one safetensors file
    PendingDirectory::Leftover leftover = PendingDirectory::Leftover::kRefuse;
  };
  /// Throws Error{kInvalidArgument} if the place is taken, Error{kResourceExhausted} if the disk
  /// has not enough room for all tensors.
  ///   claim  called with the directory before anything is written there; may throw
  ModelOutput(const Place& place, const std::vector<TensorInfo>& tensors,
              const std::function<void(const std::filesystem::path&)>& claim = {});
  /// Where it grows.
  const std::filesystem::path& path() const { return directory_.path(); }
  /// True for what an interrupted run has written; it is to be left out.
  bool is_written(const std::string& name) const { return writer_.is_written(name); }
  /// Throws as the constructor does if there is not room for so much, what is there already
  /// counted.
  void require_free_bytes(int64_t bytes) const;
  /// From here on an interrupted run is worth going on from.
  void keep() { directory_.keep(); }
  /// The next tensor of the list.
  template <typename Elements>
  void write(const std::string& name, const Elements& values) {
    writer_.write(name, std::as_bytes(std::span(values)));
  }
  /// The next three tensors of the list: a quantized parameter.
  void write_packed(const ParameterSpec& parameter, std::span<const uint32_t> words,
                    std::span<const uint16_t> scale);
  /// Copies the side files of `from` (empty: none) and makes the directory appear.
  ///   clean_up  called when all is written, before the directory has its name
  void finish(const std::filesystem::path& from, const OrderedJson& config,
              const std::function<void()>& clean_up = {});

 private:
  PendingDirectory directory_;
  HfWriter writer_;
};

}  // namespace nibble
