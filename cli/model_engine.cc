#include "cli/model_engine.h"

#include <algorithm>
#include <utility>

#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "rollout/engine/head_drafter.h"
#include "rollout/engine/lookup_drafter.h"
#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {
namespace {

constexpr int64_t kMaxGraphBatch = 256;

struct Guessers {
  std::unique_ptr<Drafter> look_up;
  std::unique_ptr<WeightedDrafter> model;
  std::shared_ptr<const ops::WeightSource> weights;  // the model's
};

void add_model(const LoadedModel& model, const ModelFlags& flags, const EngineConfig& config,
               const std::shared_ptr<DraftModel>& draft, Guessers& guessers) {
  if (model.gpu) {
    draft->weights = draft->weights->to(DeviceKind::kCuda);
    guessers.model = make_cuda_drafter(draft->spec, config, *model.gpu);
  } else {
    guessers.model =
        make_cpu_drafter(draft->spec, config, ops::torch_parallel(), activation_type(flags));
  }
  guessers.weights = draft_weights(draft);
}

// In `fast` numerics on a GPU: guesses change nothing.
void add_head(const LoadedModel& model, const ModelFlags& flags, const EngineConfig& config,
              const Drafts& drafts, Guessers& guessers) {
  const StepRunnerFactory on_cpu = [type = activation_type(flags)](const ModelSpec& spec,
                                                                   const EngineConfig& own) {
    return make_cpu_step_runner(spec, own, ops::torch_parallel(), type);
  };
  guessers.model = std::make_unique<HeadDrafter>(
      drafts.head->spec, model.spec, config,
      model.gpu ? cuda_step_runner(*model.gpu, {.numerics = Numerics::kFast}) : on_cpu,
      HeadDrafter::Options{.examples = drafts.examples});
  guessers.weights = model.gpu ? head_weights_on_gpu(drafts.head) : head_weights(drafts.head);
}

// Without a draft model or head the engine makes its own.
Guessers make_guessers(const LoadedModel& model, const ModelFlags& flags,
                       const EngineConfig& config, const Drafts& drafts) {
  Guessers guessers;
  if (drafts.model) add_model(model, flags, config, drafts.model, guessers);
  if (drafts.head) add_head(model, flags, config, drafts, guessers);
  if (guessers.model && drafts.look_up == LookUp::kBeside) {
    guessers.look_up = std::make_unique<LookupDrafter>();
  }
  return guessers;
}

}  // namespace

StepRunnerFactory own_runner_factory(const LoadedModel& model, const ModelFlags& flags,
                                     std::vector<int64_t> graph_batches) {
  const StepRanks ranks = model.ranks ? model.ranks->rank.step_ranks() : StepRanks();
  if (model.gpu) {
    return cuda_step_runner(*model.gpu, {numerics(flags), std::move(graph_batches), ranks});
  }
  return [type = activation_type(flags), ranks](const ModelSpec& spec, const EngineConfig& config) {
    return make_cpu_step_runner(spec, config, ops::torch_parallel(), type, ranks);
  };
}

StepRunnerFactory step_runner_factory(const LoadedModel& model, const ModelFlags& flags,
                                      std::vector<int64_t> graph_batches) {
  StepRunnerFactory own = own_runner_factory(model, flags, graph_batches);
  if (!model.ranks) return own;
  return model.ranks->rank.leader()->factory(std::move(own), std::move(graph_batches));
}

std::unique_ptr<Engine> make_engine(const LoadedModel& model, const ModelFlags& flags,
                                    EngineConfig config, const Drafts& drafts) {
  std::vector<int64_t> graph_batches;
  if (model.ranks) config.mesh = model.ranks->rank.mesh();
  if (model.gpu) {
    ops::bind_cuda_thread();
    const int64_t most = std::min(
        config.max_draft_tokens > 0 ? config.max_step_tokens : config.max_running, kMaxGraphBatch);
    // A CUDA graph covers the head as well.
    config.max_logit_rows = std::max({config.max_logit_rows, config.max_running, most});
    graph_batches = default_graph_batches(most);
  }
  Guessers guessers = make_guessers(model, flags, config, drafts);
  auto engine = std::make_unique<Engine>(
      model.spec, config, step_runner_factory(model, flags, std::move(graph_batches)),
      std::move(guessers.look_up), std::move(guessers.model));
  engine->set_weights(model.weights, 1);
  if (guessers.weights) engine->set_draft_weights(std::move(guessers.weights), 1);
  return engine;
}

}  // namespace nibble
