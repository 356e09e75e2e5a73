#include "cli/model_engine.h"

#include <algorithm>
#include <utility>

#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {
namespace {

constexpr int64_t kMaxGraphBatch = 256;

}  // namespace

StepRunnerFactory own_runner_factory(const LoadedModel& model, const ModelFlags& flags,
                                     std::vector<int64_t> graph_batches) {
  const StepRanks ranks = model.ranks ? model.ranks->step_ranks : StepRanks();
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
  return model.ranks->leader->factory(std::move(own), std::move(graph_batches));
}

std::unique_ptr<Engine> make_engine(const LoadedModel& model, const ModelFlags& flags,
                                    EngineConfig config) {
  std::vector<int64_t> graph_batches;
  if (model.ranks) config.mesh = model.ranks->step_ranks.mesh();
  if (model.gpu) {
    ops::bind_cuda_thread();
    const int64_t most = std::min(
        config.max_draft_tokens > 0 ? config.max_step_tokens : config.max_running, kMaxGraphBatch);
    // A CUDA graph covers the head as well.
    config.max_logit_rows = std::max({config.max_logit_rows, config.max_running, most});
    graph_batches = default_graph_batches(most);
  }
  auto engine = std::make_unique<Engine>(
      model.spec, config, step_runner_factory(model, flags, std::move(graph_batches)));
  engine->set_weights(model.weights, 1);
  return engine;
}

}  // namespace nibble
