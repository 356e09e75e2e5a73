#include <set>

#include "cli/checkpoint_summary.h"
#include "core/checkpoint/hf_directory.h"
#include "core/checkpoint/weights_digest.h"
#include "core/models/checkpoint_tensors.h"
#include "core/spec/parameters.h"
#include "core/spec/quantization.h"

namespace nibble {
namespace {

std::string hash_weights(const HfDirectory& directory, const std::vector<TensorInfo>& tensors) {
  WeightsDigest digest;
  for (const TensorInfo& info : tensors) digest.add(info.name, directory.tensor(info.name).bytes);
  return digest.finish();
}

}  // namespace

void count_parameters(CheckpointSummary& summary, const ParameterTable& table,
                      const QuantizationPlan& plan) {
  for (int64_t i = 0; i < table.size(); ++i) {
    summary.num_parameters += table.at(i).num_elements();
    if (plan.quantized[static_cast<size_t>(i)]) summary.num_quantized += table.at(i).num_elements();
  }
}

void count_tensors(CheckpointSummary& summary, const std::vector<TensorInfo>& tensors) {
  std::set<std::string> dtypes(summary.dtypes.begin(), summary.dtypes.end());
  for (const TensorInfo& info : tensors) {
    summary.num_bytes += info.num_bytes();
    dtypes.emplace(dtype_name(info.dtype));
  }
  summary.num_tensors += static_cast<int64_t>(tensors.size());
  summary.dtypes.assign(dtypes.begin(), dtypes.end());
}

CheckpointSummary summarize_hf_directory(const std::filesystem::path& path) {
  const HfDirectory directory(path);
  const std::string config_path = (path / "config.json").string();
  CheckpointSummary summary;
  summary.path = path;
  summary.format = "huggingface";
  summary.model = parse_model_config(directory.config(), config_path);
  summary.quantization = parse_quantization_config(directory.config(), config_path);
  const ParameterTable table = model_parameters(summary.model);
  const QuantizationPlan plan =
      summary.quantization ? plan_from_config(table, *summary.quantization) : plan_bf16(table);
  check_checkpoint_tensors(directory, table, plan, StoredTypes::kAny);
  count_parameters(summary, table, plan);
  const std::vector<TensorInfo> tensors = directory.tensors();
  count_tensors(summary, tensors);
  summary.weights_sha256 = hash_weights(directory, tensors);
  return summary;
}

}  // namespace nibble
