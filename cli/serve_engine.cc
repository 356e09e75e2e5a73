#include "cli/serve_engine.h"

#include <algorithm>
#include <utility>

#include "cli/model_engine.h"

namespace nibble {
namespace {

EngineConfig engine_config(const ServeEngineFlags& flags, const LoadedModel& model) {
  EngineConfig config;
  config.max_running = flags.max_running;
  // Room for prompts beside a full batch.
  config.max_step_tokens += flags.max_running;
  config.kv_slots = flags.kv_tokens;
  config.max_positions = std::min(model.spec.config.max_position, flags.max_positions);
  config.max_requests = flags.capacity();
  config.max_draft_tokens = flags.max_draft_tokens;
  return config;
}

}  // namespace

int64_t served_positions(const ServeEngineFlags& flags, int64_t model_positions) {
  return std::min({model_positions, flags.max_positions, flags.kv_tokens});
}

ServedEngine make_served_engine(const ServeEngineFlags& flags,
                                const std::shared_ptr<const LoadedModel>& model) {
  ServedEngine served;
  served.model = model;
  served.engine = make_engine(*model, flags.model, engine_config(flags, *model),
                              load_drafts(*model, flags.model, flags.draft));
  served.make_scorer = [model, flags] {
    return std::make_unique<GivenScorer>(model->spec, step_runner_factory(*model, flags.model, {}),
                                         *model->weights,
                                         served_positions(flags, model->spec.config.max_position));
  };
  return served;
}

}  // namespace nibble
