#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/base/array.h"
#include "core/checkpoint/hf_directory.h"
#include "core/kernels/parallel.h"
#include "core/models/decoder.h"
#include "core/ops/weight_source.h"
#include "core/spec/mesh.h"
#include "core/spec/quantization.h"

namespace nibble {

/// One parameter's bytes as they are stored, sent and multiplied with.
struct StoredParameter {
  Array<uint16_t> bf16;   ///< [rows, cols], unless quantized
  Array<uint32_t> words;  ///< [rows, cols/8] if quantized
  Array<uint16_t> scale;  ///< [rows, cols/group] if quantized

  /// Zeros for `rows` rows of a parameter.
  static StoredParameter make(const ParameterSpec& spec, int64_t rows, const QuantizationPlan& plan,
                              bool quantized, DeviceKind device);
  StoredParameter to(DeviceKind device) const;
  /// The same bytes where they are (Array::view).
  StoredParameter shared() { return {bf16.view(), words.view(), scale.view()}; }
  /// Some rows of a parameter in host memory.
  StoredParameter rows(const ParameterSpec& spec, const QuantizationPlan& plan,
                       RowShard rows) const;
  kernels::WeightView view(const ParameterSpec& spec, const QuantizationPlan& plan,
                           bool quantized) const;
};

/// Parameters that were packed once and are never written again. Shared: a trainer multiplies with
/// them while senders ship them and an engine of the same process serves them.
using SharedPacking = std::shared_ptr<const std::vector<StoredParameter>>;

/// All weights of a model in memory: what a rollout engine serves, what the reference and offline
/// commands run on. With enable_gradients() also a trainer's source for tests and small models.
class ResidentWeights : public ops::WeightSource {
 public:
  /// Which parameters get memory.
  enum class Holding {
    kAll,
    kTrained,  ///< frozen ones are to be views of what somebody else keeps
  };
  /// Zeros of the right sizes.
  ResidentWeights(const ParameterTable& table, QuantizationPlan plan,
                  DeviceKind device = DeviceKind::kCpu, Holding holding = Holding::kAll);
  /// Weights that somebody else packed and may hold on to, read only: one entry per parameter of
  /// `table`, on `device`. Nothing is copied.
  ResidentWeights(const ParameterTable& table, QuantizationPlan plan, SharedPacking packing,
                  DeviceKind device);

  void enter_layer(int64_t, ops::Pass) override {}
  void leave_layer(int64_t, ops::Pass) override {}
  kernels::WeightView weight(int64_t parameter) const override;
  float* grad(int64_t parameter) override;

  void enable_gradients();
  const QuantizationPlan& plan() const { return plan_; }
  /// To be written: not for weights that are somebody else's.
  StoredParameter& stored(int64_t parameter);
  const StoredParameter& stored(int64_t parameter) const {
    return all_stored()[static_cast<size_t>(parameter)];
  }
  std::span<const StoredParameter> parameters() const { return all_stored(); }
  int64_t num_bytes() const;
  DeviceKind device() const { return device_; }
  /// The same weights on a device.
  std::unique_ptr<ResidentWeights> to(DeviceKind device) const;

 private:
  const std::vector<StoredParameter>& all_stored() const { return shared_ ? *shared_ : stored_; }

  const ParameterTable& table_;
  QuantizationPlan plan_;
  DeviceKind device_;
  std::vector<StoredParameter> stored_;  // empty if they are somebody else's
  SharedPacking shared_;                 // null if they are our own
  std::vector<Array<float>> grads_;      // empty unless enabled
};

/// Reads a Hugging Face checkpoint, BF16 or INT4, as it is; W8A16 becomes the BF16 weights that it
/// stands for. `table` must outlive the result.
/// Throws Error naming the tensor if one is missing, misshapen or of another type.
std::unique_ptr<ResidentWeights> load_weights(const HfDirectory& directory,
                                              const ParameterTable& table);

/// The rows of such a checkpoint that one rank of several multiplies with.
///   held  rank_table(table, mesh, rank); must outlive the result
std::unique_ptr<ResidentWeights> load_rank_weights(const HfDirectory& directory,
                                                   const ParameterTable& table,
                                                   const ParameterTable& held, const Mesh& mesh,
                                                   int rank);
/// The same rows of weights in host memory.
std::unique_ptr<ResidentWeights> rank_weights(const ResidentWeights& whole,
                                              const ParameterTable& table,
                                              const ParameterTable& held, const Mesh& mesh,
                                              int rank);

/// Reads a checkpoint and quantizes it by `plan` (sym7): what a trainer with QAT multiplies with.
/// An INT4 checkpoint is dequantized to masters first. Throws Error{kInvalidArgument} naming
/// tensor, row and group for weights that cannot be quantized.
std::unique_ptr<ResidentWeights> load_weights_quantized(const HfDirectory& directory,
                                                        const ParameterTable& table,
                                                        const QuantizationPlan& plan,
                                                        const kernels::Parallel& parallel);

/// BF16 values of one parameter, dequantized if the checkpoint stores it in INT4 or INT8.
std::vector<uint16_t> load_bf16(const HfDirectory& directory, const ParameterSpec& parameter);
/// The same, where the checkpoint holds it as it is: [rows, cols] in its mapped file, not checked
/// for NaN and infinity, valid as long as `directory`. Empty where load_bf16 must be asked.
std::span<const uint16_t> mapped_bf16(const HfDirectory& directory, const ParameterSpec& parameter);

/// Words and scales of one parameter that a checkpoint stores quantized by `config`, as they are.
/// Throws as load_weights().
StoredParameter load_packed(const HfDirectory& directory, const ParameterSpec& parameter,
                            const QuantizationConfig& config);

/// Quantizes one matrix given in float32 into `out`; throws as load_weights_quantized.
void quantize_parameter(const ParameterSpec& parameter, const float* master,
                        const QuantizationPlan& plan, const kernels::Parallel& parallel,
                        StoredParameter& out);

/// The plan that the quantization_config of a config.json states; nothing quantized if it has none.
/// `what` names it in messages.
QuantizationPlan checkpoint_plan(const Json& config, const std::string& what,
                                 const ParameterTable& table);
QuantizationPlan checkpoint_plan(const HfDirectory& directory, const ParameterTable& table);

}  // namespace nibble
