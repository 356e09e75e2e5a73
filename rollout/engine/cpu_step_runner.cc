#include "core/models/arena_executor.h"
#include "core/models/kv_cache.h"
#include "rollout/engine/sampler.h"
#include "rollout/engine/step_runner.h"

namespace nibble {
namespace {

class CpuStepRunner final : public StepRunner {
 public:
  CpuStepRunner(const ModelSpec& spec, const EngineConfig& config,
                const kernels::Parallel& parallel, ActivationType activations, StepRanks ranks)
      : spec_(spec),
        cache_(rank_config(spec.config, ranks.mesh()), config.kv_slots),
        executor_(spec, {config.max_step_tokens, config.max_positions}, parallel, activations,
                  ranks),
        sampler_({spec.config.hidden, spec.config.vocab, config.max_logit_rows}, parallel, ranks) {}

  void set_weights(const ops::WeightSource& weights, int64_t /*version*/) override {
    weights_ = &weights;
  }

  void run(StepPlan& plan, const int32_t* slot_table) override {
    const ArenaStep step{plan.tokens,
                         plan.position,
                         plan.slot,
                         {slot_table, plan.first.data(), plan.count.data()},
                         plan.joined};
    const float* hidden = executor_.run(step, *weights_, cache_);
    const int64_t width = spec_.config.hidden;
    for (const int32_t row : plan.hidden_rows) {
      plan.hidden.insert(plan.hidden.end(), hidden + row * width, hidden + (row + 1) * width);
    }
    sampler_.draw(hidden, weights_->weight(spec_.table.lm_head), plan.draws);
  }

  std::span<const int32_t> routes(int64_t moe_layer) const override {
    return executor_.routes(moe_layer);
  }

 private:
  const ModelSpec& spec_;
  KvCache cache_;
  ArenaExecutor executor_;
  Sampler sampler_;
  const ops::WeightSource* weights_ = nullptr;
};

}  // namespace

RunnerMemory cpu_runner_memory(const ModelSpec& spec, const EngineConfig& config) {
  const int64_t world = config.mesh.world;
  // Of several ranks each has a part of the logits, everybody's parts and the whole.
  const int64_t parts =
      world == 1 ? 0 : (world + 1) * head_share(spec.config.vocab, 0, config.mesh.world).rows();
  const int64_t logits =
      4 * config.max_logit_rows * (spec.config.vocab + parts + spec.config.hidden);
  const int64_t table = 4 * config.max_running * config.max_positions;
  return {
      ArenaExecutor::num_bytes(spec, {config.max_step_tokens, config.max_positions}, config.mesh) +
          logits + table,
      KvCache::bytes_per_slot(rank_config(spec.config, config.mesh))};
}

std::unique_ptr<StepRunner> make_cpu_step_runner(const ModelSpec& spec, const EngineConfig& config,
                                                 const kernels::Parallel& parallel,
                                                 ActivationType activations, StepRanks ranks) {
  return std::make_unique<CpuStepRunner>(spec, config, parallel, activations, ranks);
}

}  // namespace nibble
