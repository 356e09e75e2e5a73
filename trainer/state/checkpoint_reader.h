#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/kernels/parallel.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/quant/hash.h"
#include "core/spec/mesh.h"
#include "core/spec/quantization.h"

namespace nibble {

/// Where a run stands; kept beside the optimizer state.
struct TrainProgress {
  int64_t step = 0;            ///< rollout steps finished
  int64_t weight_version = 0;  ///< last version published
  int64_t updates = 0;         ///< optimizer steps taken
};

/// Whether a directory is a training checkpoint, finished or not, rather than a Hugging Face one.
bool is_train_checkpoint(const std::filesystem::path& directory);

/// The file of one rank's rows: "rank-000-of-002.safetensors".
std::string checkpoint_rank_file(int rank, int world);

/// Metadata key of a rank file: the content hash of its rows of one parameter, 32 hex digits.
std::string checkpoint_hash_key(const std::string& kind, const ParameterSpec& parameter);
std::string content_hash_text(const quant::ContentHash& hash);

/// What meta.json's "sha256" is taken of: its other keys, and the text of config.json.
std::string checkpoint_meta_sha256(const OrderedJson& meta, std::string_view config_json);

constexpr int kCheckpointFormatVersion = 2;

/// A finished training checkpoint, mapped: any rows of any parameter, however many ranks wrote it.
/// Immutable after construction; any thread may read.
class CheckpointReader {
 public:
  /// Throws Error{kNotFound} or Error{kInvalidArgument} naming the file and key at fault.
  explicit CheckpointReader(const std::filesystem::path& directory);

  const std::filesystem::path& path() const { return directory_; }
  const TrainProgress& progress() const { return progress_; }
  const ModelSpec& spec() const { return spec_; }
  /// What is quantized in the weights that are served.
  const QuantizationPlan& serve_plan() const { return plan_; }
  /// config.json of the served model, its keys in order.
  const OrderedJson& config() const { return config_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }

  /// Rows of a parameter's "master", "m" or "v" in float32, from slices whose hashes are checked.
  /// Throws Error naming the file and tensor that is missing, misshapen, damaged or leaves rows
  /// out.
  void read_rows(const std::string& kind, int64_t parameter, RowShard rows,
                 std::vector<float>& out) const;

  /// A parameter as it is served, made from its master: packed INT4, or rounded to BF16. Throws
  /// Error{kInvalidArgument} naming tensor, row and group that cannot be quantized.
  StoredParameter served(int64_t parameter, const kernels::Parallel& parallel) const;

 private:
  RowShard rows_in_file(const SafetensorsFile& file, const std::string& kind,
                        const ParameterSpec& parameter) const;
  void check_hash(const SafetensorsFile& file, const std::string& kind,
                  const ParameterSpec& parameter, int64_t first_row) const;

  std::filesystem::path directory_;
  OrderedJson config_;
  TrainProgress progress_;
  ModelSpec spec_;
  QuantizationPlan plan_;
  std::vector<SafetensorsFile> files_;  // by rank
};

}  // namespace nibble
