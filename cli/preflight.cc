#include "cli/preflight.h"

#include <algorithm>
#include <limits>

#include "cli/job_plans.h"
#include "coordinator/held_out.h"
#include "core/base/context.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/checkpoint/hf_directory.h"
#include "core/data/prompts.h"
#include "core/device/cuda_device.h"
#include "core/models/checkpoint_tensors.h"
#include "core/models/weights.h"
#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/same_vocabulary.h"
#include "core/tokenizer/tokenizer.h"
#include "rollout/draft_head.h"
#include "rollout/draft_model.h"
#include "rollout/prompt_length.h"
#include "trainer/token_records.h"

namespace nibble {
namespace {

// Every parameter is there as the trainer will read it: BF16, or packed as its own config says.
void check_weights(const std::filesystem::path& path) {
  const HfDirectory directory(path);
  const ParameterTable table =
      model_parameters(parse_model_config(directory.config(), (path / "config.json").string()));
  check_checkpoint_tensors(directory, table, checkpoint_plan(directory, table));
}

// Every prompt fits the engine. A token has at least one byte, so most need no encoding.
void check_prompts(const RunConfig& config, const PromptEncoder& encoder,
                   const Tokenizer& tokenizer, const std::filesystem::path& path,
                   int64_t max_new_tokens) {
  constexpr auto kNoLimit = std::numeric_limits<int64_t>::max();
  const RolloutConfig& limits = config.rollout;
  const int64_t kv_slots = limits.kv_tokens > 0 ? limits.kv_tokens : kNoLimit;
  const int64_t most = std::min(limits.max_positions, kv_slots) - max_new_tokens;
  for (const PromptRecord& prompt :
       read_prompts(path, config.data.keys.prompt, config.data.label_key)) {
    const Json& content = prompt.content;
    if (content.is_string() &&
        static_cast<int64_t>(content.get_ref<const std::string&>().size()) < most) {
      continue;
    }
    check_prompt_length(tokenizer, encoder.encode(content), max_new_tokens, limits, kv_slots);
  }
}

void check_device(const RunConfig& config) {
  const bool has_gpu = config.cluster.device != DeviceChoice::kCpu && ops::num_cuda_devices() > 0;
  if (config.cluster.device == DeviceChoice::kCuda && !has_gpu) {
    fail(ErrorCode::kInvalidArgument,
         "cluster.device is cuda, but this nibble sees no GPU ({}; `nibble doctor` says more): "
         "build with `cmake --preset cuda` on a machine with a GPU, or set cluster.device: auto",
         ops::no_cuda_reason());
  }
  if (has_gpu) ops::check_cuda_devices();
  if (config.weight_sync.delta && config.cluster.placement == Placement::kColocated) {
    fail(
        ErrorCode::kInvalidArgument,
        "weight_sync.delta needs cluster.placement: separate; a colocated trainer keeps no version "
        "to compare with: set it to false");
  }
  if (config.cluster.device == DeviceChoice::kAuto && !has_gpu) {
    get_logger("config")->info("cluster.device: auto takes the CPU: {}", ops::no_cuda_reason());
  }
  if (config.rollout.kv_tokens == 0 && !has_gpu) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.kv_tokens: 0 means what GPU memory is left; on a CPU name a number of tokens");
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

// Models that are asked about what the model samples.
void check_same_vocabularies(const RunConfig& config) {
  const auto check = [&](const char* key, const char* role, const std::filesystem::path& path) {
    if (path.empty()) return;
    with_context(key, [&] {
      check_same_vocabulary(role, path, config.model.path);
      check_weights(path);
    });
  };
  check("model.teacher", "a teacher", config.model.teacher);
  check("critic.model", "a critic", config.critic.model);
}

}  // namespace

void check_inputs(const RunConfig& config) {
  check_device(config);
  if (config.model.init == ModelInit::kPretrained) check_weights(config.model.path);
  if (!config.model.reference.empty()) check_weights(config.model.reference);
  if (config.lora.rank > 0) check_weights(frozen_base(config, job_plans(config).train));
  const Tokenizer tokenizer = Tokenizer::from_directory(config.model.path);
  if (const auto records = record_source(config)) {
    check_vocabulary(tokenizer, config.model.path);
    (void)load_token_records(*records);
    return;
  }
  if (!config.rollout.draft_model.empty()) {
    check_draft_model("rollout.draft_model", config.rollout.draft_model, config.model.path);
    check_weights(config.rollout.draft_model);
  }
  if (!config.rollout.draft_head.empty()) {
    const Json model = read_hf_config(config.model.path);
    const ModelSpec spec =
        make_model_spec(parse_model_config(model, (config.model.path / "config.json").string()));
    (void)load_draft_head("rollout.draft_head", config.rollout.draft_head, spec);
  }
  check_same_vocabularies(config);
  const PromptEncoder encoder(tokenizer, config.model.path.string());
  const int64_t max_new_tokens = config.rollout.max_new_tokens;
  check_prompts(config, encoder, tokenizer, config.data.train, max_new_tokens);
  for (const HeldOutSet& set : held_out_sets(config.eval, max_new_tokens)) {
    check_prompts(config, encoder, tokenizer, set.data, set.max_new_tokens);
  }
}

}  // namespace nibble
