#include <algorithm>
#include <memory>
#include <numeric>

#include "cli/log_prob_path.h"
#include "cli/model_engine.h"
#include "core/device/cuda_device.h"
#include "rollout/engine/step_runner.h"

namespace nibble {
namespace {

// Logits of this many tokens exist at a time: 16 MiB of float32.
int64_t head_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t{4} << 20) / vocab); }

// The engine's own steps over one sequence, with draws whose outcome is given.
class RolloutPath final : public LogProbPath {
 public:
  RolloutPath(const LoadedModel& model, const ModelFlags& flags, const LogProbOptions& options)
      : model_(model), options_(options), make_runner_(step_runner_factory(model, flags, {})) {}

  ScoredSequence score(std::span<const int32_t> ids) override {
    reserve(static_cast<int64_t>(ids.size()));
    ScoredSequence scored;
    if (options_.wants_routes) {
      scored.routes.resize(static_cast<size_t>(model_.spec.config.num_moe_layers()));
    }
    const auto count = static_cast<int64_t>(ids.size());
    for (int64_t begin = 0; begin < count; begin += options_.chunk_tokens) {
      run_chunk(ids, begin, std::min(options_.chunk_tokens, count - begin), scored);
    }
    return scored;
  }

 private:
  void reserve(int64_t tokens) {
    if (runner_ && std::ssize(slot_) >= tokens) return;
    const int64_t positions = padded_positions(model_.spec.config, tokens);
    config_.max_running = 1;
    config_.max_step_tokens = options_.chunk_tokens;
    config_.max_positions = positions;
    config_.kv_slots = positions;
    config_.max_logit_rows = std::min(options_.chunk_tokens, head_rows(model_.spec.config.vocab));
    runner_.reset();  // its memory first
    if (model_.gpu) ops::bind_cuda_thread();
    runner_ = make_runner_(model_.spec, config_);
    runner_->set_weights(*model_.weights, 1);
    slot_.resize(static_cast<size_t>(positions));
    std::iota(slot_.begin(), slot_.end(), 0);
  }

  void run_chunk(std::span<const int32_t> ids, int64_t begin, int64_t count,
                 ScoredSequence& scored) {
    // Position p of the only sequence is in slot p, and a token sees all slots up to its own.
    plan_.clear();
    for (int64_t i = begin; i < begin + count; ++i) {
      const auto at = static_cast<size_t>(i);
      plan_.tokens.push_back(ids[at]);
      plan_.position.push_back(slot_[at]);
      plan_.slot.push_back(slot_[at]);
      plan_.first.push_back(0);
      plan_.count.push_back(slot_[at] + 1);
      if (at + 1 == ids.size()) continue;
      Draw draw;
      draw.row = i - begin;
      draw.sampling.temperature = options_.temperature;
      draw.given = ids[at + 1];
      plan_.draws.push_back(draw);
    }
    runner_->run(plan_, slot_.data());
    for (const Draw& draw : plan_.draws) scored.log_prob.push_back(draw.log_prob);
    for (size_t layer = 0; layer < scored.routes.size(); ++layer) {
      const auto route = runner_->routes(static_cast<int64_t>(layer));
      scored.routes[layer].insert(scored.routes[layer].end(), route.begin(), route.end());
    }
  }

  const LoadedModel& model_;
  const LogProbOptions options_;
  const StepRunnerFactory make_runner_;
  EngineConfig config_;  // the runner's; it may keep a reference
  std::unique_ptr<StepRunner> runner_;
  std::vector<int32_t> slot_;  // 0, 1, 2, ...
  StepPlan plan_;
};

}  // namespace

std::unique_ptr<LogProbPath> make_rollout_path(const LoadedModel& model, const ModelFlags& flags,
                                               const LogProbOptions& options) {
  return std::make_unique<RolloutPath>(model, flags, options);
}

}  // namespace nibble
