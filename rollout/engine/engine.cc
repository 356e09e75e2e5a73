#include "rollout/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "rollout/engine/chained_drafter.h"
#include "rollout/engine/lookup_drafter.h"
#include "rollout/engine/weight_shapes.h"

namespace nibble {
namespace {

std::unique_ptr<Drafter> make_drafter(const EngineConfig& config, std::unique_ptr<Drafter> drafter,
                                      std::unique_ptr<WeightedDrafter> model) {
  if (config.max_draft_tokens == 0) return nullptr;
  if (drafter && model) {
    return std::make_unique<ChainedDrafter>(std::move(drafter), std::move(model));
  }
  if (model) return model;
  return drafter ? std::move(drafter) : std::make_unique<LookupDrafter>();
}

// The model, if it can guess for an engine of this kind.
WeightedDrafter* checked_model(const ModelSpec& spec, const EngineConfig& config,
                               WeightedDrafter* model) {
  if (model == nullptr) return nullptr;
  if (config.max_draft_tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "engine max_draft_tokens is 0; with a draft model it must be at least 1");
  }
  if (model->spec().config.vocab != spec.config.vocab) {
    fail(ErrorCode::kInvalidArgument,
         "the draft model has a vocabulary of {} tokens, the model one of {}; it must be the same",
         model->spec().config.vocab, spec.config.vocab);
  }
  const ModelConfig& head = model->spec().config;
  if (head.joins_hidden && head.hidden != spec.config.hidden) {
    fail(ErrorCode::kInvalidArgument,
         "the draft head has hidden_size = {}, the model {}; it must be the same", head.hidden,
         spec.config.hidden);
  }
  return model;
}

EngineConfig checked(const EngineConfig& config) {
  check_engine_config(config);
  return in_whole_blocks(config);
}

int64_t bytes_per_expert(const MoeConfig& moe) { return moe.num_experts <= 256 ? 1 : 2; }

int64_t route_bytes(const ModelConfig& config) {
  return config.num_moe_layers() * config.moe.top_k * bytes_per_expert(config.moe);
}

// Appends experts [tokens, k] of one layer's step to `out` as [tokens, layers, k].
struct RouteBlock {
  uint8_t* out;
  int64_t layer;
  int64_t layers;
  int64_t top_k;
  int64_t bytes;

  void write(const int32_t* expert, int64_t tokens) const {
    for (int64_t t = 0; t < tokens; ++t) {
      uint8_t* to = out + (t * layers + layer) * top_k * bytes;
      for (int64_t i = 0; i < top_k; ++i) {
        const auto wide = static_cast<uint16_t>(expert[t * top_k + i]);
        const auto narrow = static_cast<uint8_t>(wide);
        std::memcpy(to + i * bytes, bytes == 1 ? static_cast<const void*>(&narrow) : &wide,
                    static_cast<size_t>(bytes));
      }
    }
  }
};

}  // namespace

Engine::Engine(const ModelSpec& spec, const EngineConfig& config,
               const StepRunnerFactory& make_runner, std::unique_ptr<Drafter> drafter,
               std::unique_ptr<WeightedDrafter> draft_model)
    : spec_(spec),
      config_(checked(config)),
      draft_model_(checked_model(spec_, config_, draft_model.get())),
      scheduler_(config_, route_bytes(spec_.config),
                 make_drafter(config_, std::move(drafter), std::move(draft_model))),
      runner_(make_runner(spec_, config_)) {}

Engine::Engine(const ModelSpec& spec, const EngineConfig& config, const kernels::Parallel& parallel,
               ActivationType activations, std::unique_ptr<Drafter> drafter,
               std::unique_ptr<WeightedDrafter> draft_model)
    : Engine(
          spec, config,
          [&](const ModelSpec& own_spec, const EngineConfig& own_config) {
            return make_cpu_step_runner(own_spec, own_config, parallel, activations);
          },
          std::move(drafter), std::move(draft_model)) {}

SubmitOutcome Engine::submit(std::vector<GenerateRequest> requests) {
  const RequestLimits limits{spec_.config.vocab, config_.max_positions, config_.kv_slots,
                             route_bytes(spec_.config)};
  for (const GenerateRequest& request : requests) check_request(request, limits);
  return scheduler_.submit(std::move(requests));
}

bool Engine::abort(uint64_t id) { return scheduler_.abort(id); }

void Engine::set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version,
                         KvPolicy policy) {
  if (version < version_ || (version == version_ && weights_ != nullptr)) {
    fail(ErrorCode::kInvalidArgument, "weights of version {} cannot follow version {}", version,
         version_);
  }
  check_weight_shapes(spec_, *weights, fmt::format("weights of version {}", version), config_.mesh);
  if (policy == KvPolicy::kAbort) scheduler_.abort_started();
  if (policy == KvPolicy::kRecompute) scheduler_.recompute_started();
  if (version != version_) scheduler_.change_weights();
  runner_->set_weights(*weights, version);
  if (draft_model_ != nullptr) draft_model_->set_model_weights(weights);
  weights_ = std::move(weights);
  version_ = version;
}

void Engine::release_weights() {
  if (draft_model_ != nullptr) draft_model_->set_model_weights(nullptr);
  runner_->release_weights();
  weights_.reset();
}

void Engine::set_draft_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) {
  draft_model().set_weights(std::move(weights), version);
}

void Engine::release_draft_weights() { draft_model().release_weights(); }

WeightedDrafter& Engine::draft_model() {
  if (draft_model_ == nullptr) {
    fail(ErrorCode::kFailedPrecondition, "draft weights: this engine has no draft model");
  }
  return *draft_model_;
}

int64_t Engine::step() {
  if (is_paused_ || !has_work()) return 0;
  if (weights_ == nullptr) {
    fail(ErrorCode::kFailedPrecondition, "the engine has no weights yet; publish a version first");
  }
  scheduler_.plan(plan_);
  const Stopwatch watch;
  runner_->run(plan_, scheduler_.slot_table());
  scheduler_.observe_time(plan_, watch.elapsed_ms());
  for (size_t i = 0; i < plan_.draws.size(); ++i) {
    if (std::isfinite(plan_.draws[i].log_prob)) continue;
    fail(ErrorCode::kFailedPrecondition,
         "weights of version {} give request {} a log-probability of {}; publish sound weights",
         version_, plan_.drawers[i]->request.id, plan_.draws[i].log_prob);
  }
  scheduler_.accept(plan_, version_);
  record_routes();
  scheduler_.commit(plan_);
  return plan_.num_tokens();
}

void Engine::record_routes() {
  const int64_t layers = spec_.config.num_moe_layers();
  const int64_t top_k = spec_.config.moe.top_k;
  const int64_t bytes = bytes_per_expert(spec_.config.moe);
  for (const StepPlan::Span& span : plan_.spans) {
    const bool is_prompt = span.sequence == nullptr;
    if (layers == 0 ||
        !(is_prompt ? span.group->want_routes : span.sequence->request.want_routes)) {
      continue;
    }
    std::vector<uint8_t>& out =
        is_prompt ? span.group->routes : span.sequence->completion.routes.bytes;
    // Tokens that are computed anew keep the routes they were first computed with (R3).
    const int64_t begin = is_prompt ? span.group->computed : span.sequence->computed;
    const int64_t known = (is_prompt ? span.group->routed : span.sequence->routed) - begin;
    const int64_t skipped = std::clamp<int64_t>(known, 0, span.num_kept);
    const int64_t added = span.num_kept - skipped;
    const size_t before = out.size();
    out.resize(before + static_cast<size_t>(added * layers * top_k * bytes));
    for (int64_t layer = 0; layer < layers; ++layer) {
      const RouteBlock block{out.data() + before, layer, layers, top_k, bytes};
      block.write(runner_->routes(layer).data() + (span.row + skipped) * top_k, added);
    }
  }
}

std::vector<Completion> Engine::take_finished() {
  std::vector<Completion> finished = scheduler_.take_finished();
  for (Completion& completion : finished) {
    Routes& routes = completion.routes;
    routes.layers = spec_.config.num_moe_layers();
    routes.top_k = spec_.config.moe.top_k;
    routes.bytes_per_expert = bytes_per_expert(spec_.config.moe);
  }
  return finished;
}

}  // namespace nibble
