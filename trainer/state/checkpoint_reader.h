#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/kernels/parallel.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/spec/mesh.h"
#include "core/spec/quantization.h"
#include "trainer/state/frozen_base.h"
#include "trainer/state/row_files.h"

namespace nibble {

/// Where a run stands; kept beside the optimizer state.
struct TrainProgress {
  int64_t step = 0;                       ///< rollout steps finished
  int64_t weight_version = 0;             ///< last version published
  int64_t updates = 0;                    ///< optimizer steps taken
  std::vector<double> recent_grad_norms;  ///< that guards compare with (Guard)
  std::string rollout_state;              ///< JSON of the coordinator's, as it is; empty: none
  std::string job_config;                 ///< YAML of the job that wrote it; empty: not kept
};

/// Whether a directory is a training checkpoint, finished or not, rather than a Hugging Face one.
bool is_train_checkpoint(const std::filesystem::path& directory);

/// What meta.json's "sha256" is taken of: its other keys, and the text of config.json.
std::string checkpoint_meta_sha256(const OrderedJson& meta, std::string_view config_json);

/// A critic, if there is one, adds `"critic": {"updates", "config"}` to meta.json and files of its
/// own; whoever knows nothing of it reads the model alone.
constexpr int kCheckpointFormatVersion = 2;
/// The same with a BF16 "scale" beside each quantized parameter's "master", and `"scales": "held"`
/// in meta.json: codes are of these scales, which no master tells.
constexpr int kHeldCheckpointFormatVersion = 3;

/// A critic's state beside the model's.
struct StoredCritic {
  ModelSpec spec;       ///< a value_model()
  int64_t updates = 0;  ///< its optimizer steps
  RowFiles rows;
};

/// Where the frozen weights of a checkpoint with adapters are: beside LoraShape in its config.json.
struct AdapterBase {
  std::filesystem::path directory;
  std::string digest;  ///< frozen_digest()
};

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
  /// Of the model.
  const RowFiles& rows() const { return *rows_; }
  /// Of a run of algorithm.advantage: gae; null for any other.
  const StoredCritic* critic() const { return critic_ ? &*critic_ : nullptr; }
  /// Whether scales are held (qat.start: calibrated) rather than derived from the masters.
  bool holds_scales() const { return holds_scales_; }
  /// Of a checkpoint that trains adapters beside frozen weights (spec().config.lora).
  const std::optional<AdapterBase>& base() const { return base_; }

  /// RowFiles::read_rows() of the model.
  void read_rows(const std::string& kind, int64_t parameter, RowShard rows,
                 std::vector<float>& out) const;

  /// RowFiles::read_scales() of a quantized parameter, [rows, cols/group].
  void read_scales(int64_t parameter, RowShard rows, std::vector<uint16_t>& out) const;

  /// A parameter as it is served, made from its master: packed INT4, or rounded to BF16; a frozen
  /// one from base(), which the first such call reads as a whole. Throws Error{kInvalidArgument}
  /// naming tensor, row and group that cannot be quantized, Error{kNotFound} if the base is gone,
  /// Error{kDataLoss} if it holds other weights.
  StoredParameter served(int64_t parameter, const kernels::Parallel& parallel) const;

 private:
  const FrozenBase& open_base(const kernels::Parallel& parallel) const;

  std::filesystem::path directory_;
  OrderedJson config_;
  TrainProgress progress_;
  ModelSpec spec_;
  QuantizationPlan plan_;
  bool holds_scales_ = false;
  std::optional<RowFiles> rows_;  // there once the constructor is done
  std::optional<StoredCritic> critic_;
  std::optional<AdapterBase> base_;
  struct OpenedBase;
  std::shared_ptr<OpenedBase> opened_base_;  // shared: copies of this open it once
};

}  // namespace nibble
