#include "rollout/draft_model.h"

#include <algorithm>
#include <utility>

#include "core/base/context.h"
#include "core/base/fail.h"
#include "core/checkpoint/hf_directory.h"
#include "core/tokenizer/same_vocabulary.h"
#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {
namespace {

constexpr int64_t kMaxGraphBatch = 256;

ModelConfig config_of(const std::filesystem::path& directory) {
  return parse_model_config(read_hf_config(directory), (directory / "config.json").string());
}

// Guesses of all samples, and a token to catch up with for each.
int64_t graph_rows(const EngineConfig& config) {
  return std::min({2 * config.max_running, config.max_step_tokens, kMaxGraphBatch});
}

}  // namespace

void check_draft_model(const std::string& what, const std::filesystem::path& draft,
                       const std::filesystem::path& model) {
  with_context(what, [&] { check_same_vocabulary("a draft model", draft, model); });
}

std::shared_ptr<DraftModel> load_draft_model(const std::string& what,
                                             const std::filesystem::path& draft,
                                             const std::filesystem::path& model) {
  check_draft_model(what, draft, model);
  return with_context(what, [&] {
    auto loaded = std::make_shared<DraftModel>(make_model_spec(config_of(draft)));
    loaded->weights = load_weights(HfDirectory(draft), loaded->spec.table);
    return loaded;
  });
}

std::shared_ptr<const ops::WeightSource> draft_weights(std::shared_ptr<const DraftModel> draft) {
  const ops::WeightSource* weights = draft->weights.get();
  return {std::move(draft), weights};
}

std::unique_ptr<ModelDrafter> make_cpu_drafter(const ModelSpec& draft, const EngineConfig& config,
                                               const kernels::Parallel& parallel,
                                               ActivationType activations) {
  return std::make_unique<ModelDrafter>(
      draft, draft_config(config, draft), [&](const ModelSpec& spec, const EngineConfig& own) {
        return make_cpu_step_runner(spec, own, parallel, activations);
      });
}

EngineConfig cuda_draft_config(const EngineConfig& config, const ModelSpec& draft) {
  EngineConfig own = draft_config(config, draft);
  own.max_logit_rows = graph_rows(config);
  return own;
}

std::unique_ptr<ModelDrafter> make_cuda_drafter(const ModelSpec& draft, const EngineConfig& config,
                                                const ops::Backend& backend) {
  return std::make_unique<ModelDrafter>(
      draft, cuda_draft_config(config, draft),
      cuda_step_runner(backend, {Numerics::kFast, default_graph_batches(graph_rows(config))}),
      ModelDrafter::Options{.draws_in_every_row = true});
}

}  // namespace nibble
