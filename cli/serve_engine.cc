#include "cli/serve_engine.h"

#include <algorithm>
#include <memory>

#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {
namespace {

constexpr int64_t kMaxGraphBatch = 256;

EngineConfig engine_config(const ServeEngineFlags& flags, const LoadedModel& model) {
  EngineConfig config;
  config.max_running = flags.max_running;
  config.max_step_tokens = std::max(config.max_step_tokens, flags.max_running);
  config.kv_slots = flags.kv_tokens;
  config.max_positions = std::min(model.spec.config.max_position, flags.max_positions);
  config.max_requests = flags.capacity();
  config.max_draft_tokens = flags.max_draft_tokens;
  // A CUDA graph covers the head as well.
  if (model.gpu) config.max_logit_rows = std::max(config.max_logit_rows, flags.max_running);
  return config;
}

StepRunnerFactory runner_factory(const ServeEngineFlags& flags, const LoadedModel& model,
                                 std::vector<int64_t> graph_batches) {
  if (model.gpu) {
    return cuda_step_runner(*model.gpu, {numerics(flags.model), std::move(graph_batches)});
  }
  return [type = activation_type(flags.model)](const ModelSpec& spec, const EngineConfig& config) {
    return make_cpu_step_runner(spec, config, ops::torch_parallel(), type);
  };
}

}  // namespace

int64_t served_positions(const ServeEngineFlags& flags, int64_t model_positions) {
  return std::min({model_positions, flags.max_positions, flags.kv_tokens});
}

ServedEngine make_served_engine(const ServeEngineFlags& flags) {
  const std::shared_ptr<LoadedModel> model = load_model(flags.model);
  if (model->gpu) ops::bind_cuda_thread();
  ServedEngine served;
  served.model = model;
  served.engine = std::make_unique<Engine>(
      model->spec, engine_config(flags, *model),
      runner_factory(flags, *model,
                     default_graph_batches(std::min(flags.max_running, kMaxGraphBatch))));
  served.engine->set_weights(model->weights, 1);
  served.make_scorer = [model, flags] {
    return std::make_unique<GivenScorer>(model->spec, runner_factory(flags, *model, {}),
                                         *model->weights,
                                         served_positions(flags, model->spec.config.max_position));
  };
  return served;
}

}  // namespace nibble
