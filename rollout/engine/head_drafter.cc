#include "rollout/engine/head_drafter.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/clock.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int64_t kMaxWindow = 4096;

const ModelSpec& checked(const ModelSpec& head, const ModelSpec& model) {
  if (!head.table.join.exists()) {
    fail(ErrorCode::kInvalidArgument, "the draft head has no eh_proj; a draft model is none");
  }
  const ModelConfig& own = head.config;
  const auto want = [](const char* field, int64_t value, int64_t wanted) {
    if (value == wanted) return;
    fail(ErrorCode::kInvalidArgument,
         "the draft head has {} = {}, the model {}; it must be the same", field, value, wanted);
  };
  want("vocab_size", own.vocab, model.config.vocab);
  want("hidden_size", own.hidden, model.config.hidden);
  want("tie_word_embeddings", own.tied_embeddings, model.config.tied_embeddings);
  want("num_hidden_layers", own.num_layers, 1);
  return head;
}

int64_t checked_window(int64_t window) {
  if (window >= 1 && window <= kMaxWindow) return window;
  fail(ErrorCode::kInvalidArgument, "draft head window is {}; it must be from 1 to {}", window,
       kMaxWindow);
}

EngineConfig checked_config(const EngineConfig& config) {
  check_engine_config(config);
  return config;
}

// Of the parameters that are the head's own.
void check_own_shapes(const ModelSpec& head, const ops::WeightSource& weights, int64_t version) {
  for (int64_t p = 0; p < head.table.size(); ++p) {
    if (is_of_model(head.table, p)) continue;
    const ParameterSpec& parameter = head.table.at(p);
    const kernels::WeightView view = weights.weight(p);
    if (view.rows == parameter.rows && view.cols == parameter.cols) continue;
    fail(ErrorCode::kInvalidArgument,
         "draft weights of version {}: tensor '{}' is [{}, {}], want [{}, {}]", version,
         parameter.name(), view.rows, view.cols, parameter.rows, parameter.cols);
  }
}

}  // namespace

EngineConfig head_runner_config(const EngineConfig& config, int64_t window) {
  EngineConfig own = config;
  const int64_t lane_slots = window + config.max_draft_tokens;
  own.kv_slots = config.max_running * lane_slots;
  // Where a lane of two windows is longer than a sequence, the table needs more of these.
  own.max_running =
      (config.max_running * 2 * lane_slots + config.max_positions - 1) / config.max_positions;
  own.max_draft_tokens = 0;
  own.mesh = {};  // the first rank guesses alone
  return own;
}

HeadDrafter::HeadDrafter(const ModelSpec& head, const ModelSpec& model, const EngineConfig& config,
                         const StepRunnerFactory& make_runner, Options options)
    : spec_(checked(head, model)),
      model_(model),
      config_(checked_config(config)),
      options_(options),
      samples_({head.config.hidden, config.max_running, checked_window(options.window),
                config.max_draft_tokens}),
      runner_config_(head_runner_config(config_, options.window)),
      runner_(make_runner(spec_, runner_config_)) {}

void HeadDrafter::set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) {
  if (version <= version_) {
    fail(ErrorCode::kInvalidArgument, "draft weights of version {} cannot follow version {}",
         version, version_);
  }
  check_own_shapes(spec_, *weights, version);
  own_ = std::move(weights);
  version_ = version;
  serve_weights();
}

void HeadDrafter::release_weights() {
  own_.reset();
  serve_weights();
}

void HeadDrafter::set_model_weights(std::shared_ptr<const ops::WeightSource> weights) {
  of_model_ = std::move(weights);
  serve_weights();
}

void HeadDrafter::serve_weights() {
  if (own_ == nullptr || of_model_ == nullptr) {
    weights_ = nullptr;
    return;
  }
  auto both = std::make_unique<HeadWeights>(spec_, model_, own_, of_model_);
  runner_->set_weights(*both, ++num_served_);
  weights_ = std::move(both);
}

void HeadDrafter::end(uint64_t id, bool /*is_whole*/) {
  if (options_.examples != nullptr) options_.examples->end(id, samples_.at(id).tokens);
  samples_.end(id);
}

void HeadDrafter::ask(StepPlan& plan) { samples_.ask(plan); }

void HeadDrafter::propose(const DraftRound& round, DraftPolicy& policy) {
  if (weights_ == nullptr) return;
  find_askers(round);
  if (askers_.empty()) return;
  DraftBudget budget(policy, round.num_samples);
  const bool pays = budget.takes(total_gain(askers_, budget), std::ssize(askers_));
  if (!pays) {
    if (!policy.tries_model()) return;
    keep_nearest(askers_);
  }
  int64_t room = round.room;
  place_askers(room);
  for (int64_t depth = 1; !askers_.empty(); ++depth) {
    plan_.clear();
    parts_.clear();
    drawers_.clear();
    if (depth == 1) {
      plan_inputs();
    } else {
      plan_guesses();
    }
    if (plan_.num_tokens() == 0) return;
    const Stopwatch watch;
    const int64_t num_guesses = run_step(policy);
    policy.observe_draft(plan_.num_tokens(), num_guesses, watch.elapsed_ms(), !pays);
    room -= num_guesses;
    if (!pays && depth == kTryGuesses) return;
    keep_those_that_go_on(askers_, depth, room, pays ? &budget : nullptr);
    if (pays && !budget.takes(total_gain(askers_, budget), std::ssize(askers_))) return;
  }
}

// Guesses end where positions end; the last one is not computed.
void HeadDrafter::find_askers(const DraftRound& round) {
  askers_.clear();
  for (DraftQuery& query : round.queries) {
    if (query.most == 0 || !query.guesses.empty()) continue;
    HeadSample& sample = samples_.at(query.id);
    const int64_t most = std::min(
        {query.most, config_.max_draft_tokens, config_.max_positions - sample.num_tokens() + 1});
    if (most < 1 || !sample.find_inputs(options_.window)) continue;
    askers_.push_back({{&query, 1.0, most}, &sample, {}});
  }
}

// Those without a place leave, and those whose inputs do not fit into a step.
void HeadDrafter::place_askers(int64_t room) {
  sort_nearest_first(askers_);
  if (std::ssize(askers_) > room) askers_.resize(static_cast<size_t>(room));
  std::vector<HeadSample*> asking;
  for (const Asker& asker : askers_) asking.push_back(asker.sample);
  samples_.begin_round(asking);
  std::erase_if(askers_, [this](const Asker& asker) { return !samples_.place(*asker.sample); });
}

// What the model has seen since, and a guess behind it if that is all. A sample goes on in the next
// round where it does not fit.
void HeadDrafter::plan_inputs() {
  for (Asker& asker : askers_) {
    HeadSample& sample = *asker.sample;
    const int64_t room = config_.max_step_tokens - plan_.num_tokens();
    if (room == 0) break;
    const int64_t count = std::min(room, sample.num_behind());
    for (int64_t p = sample.end; p < sample.end + count; ++p) {
      add_row(sample, p, sample.tokens[static_cast<size_t>(p)], sample.state(p - 1));
    }
    parts_.push_back({&sample, count});
    if (count == sample.num_behind()) add_draw(asker);
  }
}

void HeadDrafter::plan_guesses() {
  for (Asker& asker : askers_) {
    const HeadSample& sample = *asker.sample;
    add_row(sample, sample.num_tokens() + asker.num_guesses() - 1,
            asker.query->guesses.back().token, asker.state.data());
    add_draw(asker);
  }
}

void HeadDrafter::add_row(const HeadSample& sample, int64_t position, int32_t token,
                          const float* state) {
  plan_.tokens.push_back(token);
  plan_.position.push_back(static_cast<int32_t>(position));
  plan_.slot.push_back(samples_.slot(sample, position));
  plan_.first.push_back(samples_.first_key(sample, position));
  plan_.count.push_back(samples_.num_keys(sample, position));
  plan_.joined.insert(plan_.joined.end(), state, state + spec_.config.hidden);
}

// Of the token behind the last row.
void HeadDrafter::add_draw(Asker& asker) {
  const HeadSample& sample = *asker.sample;
  Draw draw;
  draw.row = plan_.num_tokens() - 1;
  draw.sampling = sample.request.sampling;
  draw.uniform = uniform_at(sample.request, sample.num_tokens() + asker.num_guesses());
  plan_.draws.push_back(std::move(draw));
  drawers_.push_back(&asker);
  if (asker.num_guesses() + 1 < asker.most) {
    plan_.hidden_rows.push_back(static_cast<int32_t>(plan_.num_tokens() - 1));
  }
}

int64_t HeadDrafter::run_step(DraftPolicy& policy) {
  runner_->run(plan_, samples_.slot_table());
  for (const Part& part : parts_) part.sample->add_computed(part.num_tokens);
  const float* state = plan_.hidden.data();
  for (size_t i = 0; i < plan_.draws.size(); ++i) {
    Asker& asker = *drawers_[i];
    if (asker.num_guesses() + 1 < asker.most) {
      asker.state.assign(state, state + spec_.config.hidden);
      state += spec_.config.hidden;
    }
    take_guess(asker, plan_.draws[i], version_, policy);
  }
  return std::ssize(plan_.draws);
}

}  // namespace nibble
