#include "cli/preflight.h"

#include "cli/job_kind.h"
#include "core/base/fail.h"
#include "core/checkpoint/hf_directory.h"
#include "core/data/prompts.h"
#include "core/data/text_records.h"
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

// Every id that a text may become has an embedding: a random model's sizes are somebody's choice.
void check_vocabulary(const Tokenizer& tokenizer, const std::filesystem::path& path) {
  const std::string what = (path / "config.json").string();
  const ModelConfig model = parse_model_config(read_hf_config(path), what);
  if (tokenizer.vocab_size() <= model.vocab) return;
  fail(ErrorCode::kInvalidArgument, "{}: vocab_size = {}, but the tokenizer beside it has {} ids",
       what, model.vocab, tokenizer.vocab_size());
}

}  // namespace

void check_inputs(const RunConfig& config) {
  if (config.cluster.device == DeviceChoice::kCuda && ops::num_cuda_devices() == 0) {
    fail(ErrorCode::kInvalidArgument,
         "cluster.device is cuda, but this nibble sees no GPU (`nibble doctor` says why): build "
         "with "
         "`cmake --preset cuda` on a machine with a GPU, or set cluster.device: auto");
  }
  for (const auto& file : {config.data.train, config.eval.data}) {
    if (file.empty()) continue;
    if (is_supervised(config)) {
      (void)read_text_records(file, config.data.keys);
    } else {
      (void)read_prompts(file, config.data.keys.prompt, config.data.label_key);
    }
  }
  if (config.model.init == ModelInit::kPretrained) check_weights(config.model.path);
  if (!config.model.reference.empty()) check_weights(config.model.reference);
  const Tokenizer tokenizer = Tokenizer::from_directory(config.model.path);
  if (is_supervised(config)) check_vocabulary(tokenizer, config.model.path);
}

}  // namespace nibble
