#include "cli/preflight.h"

#include "core/base/fail.h"
#include "core/checkpoint/hf_directory.h"
#include "core/data/prompts.h"
#include "core/device/cuda_device.h"
#include "core/models/weights.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {
namespace {

// Every parameter is there as the trainer will read it: BF16, or packed as its own config says.
void check_weights(const std::filesystem::path& path) {
  const HfDirectory directory(path);
  const ParameterTable table =
      model_parameters(parse_model_config(directory.config(), (path / "config.json").string()));
  const QuantizationPlan plan = checkpoint_plan(directory, table);
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    if (plan.quantized[static_cast<size_t>(i)]) {
      const std::string name = p.module + ".weight_packed";
      (void)directory.tensor(name, directory.tensor(name).dtype,
                             {p.rows, p.cols * plan.config.bits / 32});
    } else {
      const auto shape = p.is_vector() ? std::vector{p.cols} : std::vector{p.rows, p.cols};
      (void)directory.tensor(p.name(), DType::kBf16, shape);
    }
  }
}

}  // namespace

void check_inputs(const RunConfig& config) {
  if (config.cluster.device == DeviceChoice::kCuda && ops::num_cuda_devices() == 0) {
    fail(ErrorCode::kInvalidArgument,
         "cluster.device is cuda, but this nibble sees no GPU (`nibble doctor` says why): build "
         "with "
         "`cmake --preset cuda` on a machine with a GPU, or set cluster.device: auto");
  }
  const DataSection& data = config.data;
  (void)read_prompts(data.train, data.prompt_key, data.label_key);
  if (!config.eval.data.empty()) {
    (void)read_prompts(config.eval.data, data.prompt_key, data.label_key);
  }
  check_weights(config.model.path);
  if (!config.model.reference.empty()) check_weights(config.model.reference);
  (void)Tokenizer::from_directory(config.model.path);
}

}  // namespace nibble
