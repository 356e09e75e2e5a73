#include "rollout/engine/model_drafter.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "rollout/engine/weight_shapes.h"

namespace nibble {
namespace {

EngineConfig checked(const EngineConfig& config) {
  check_engine_config(config);
  return in_whole_blocks(config);
}

}  // namespace

EngineConfig draft_config(EngineConfig config, const ModelSpec& draft) {
  config.max_positions = std::min(config.max_positions, draft.config.max_position);
  config.mesh = {};  // the first rank guesses alone
  return config;
}

ModelDrafter::ModelDrafter(const ModelSpec& spec, const EngineConfig& config,
                           const StepRunnerFactory& make_runner, Options options)
    : spec_(spec),
      config_(checked(config)),
      options_(options),
      samples_(config_),
      runner_(make_runner(spec_, config_)) {}

void ModelDrafter::set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) {
  if (version <= version_) {
    fail(ErrorCode::kInvalidArgument, "draft weights of version {} cannot follow version {}",
         version, version_);
  }
  check_weight_shapes(spec_, *weights, fmt::format("draft weights of version {}", version));
  samples_.change_weights();
  runner_->set_weights(*weights, version);
  weights_ = std::move(weights);
  version_ = version;
}

void ModelDrafter::release_weights() {
  runner_->release_weights();
  weights_.reset();
}

void ModelDrafter::propose(const DraftRound& round, DraftPolicy& policy) {
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
    plan_step();
    const Stopwatch watch;
    const int64_t num_guesses = run_step(policy);
    policy.observe_draft(plan_.num_tokens(), num_guesses, watch.elapsed_ms(), !pays);
    room -= num_guesses;
    if (!pays && depth == kTryGuesses) return;
    keep_those_that_go_on(askers_, depth, room, pays ? &budget : nullptr);
    if (pays && !budget.takes(total_gain(askers_, budget), std::ssize(askers_))) return;
  }
}

void ModelDrafter::find_askers(const DraftRound& round) {
  askers_.clear();
  for (DraftQuery& query : round.queries) {
    if (query.most == 0 || !query.guesses.empty()) continue;
    DraftedSample& sample = samples_.at(query.id);
    sample.keep_what_was_drawn();
    askers_.push_back({{&query, 1.0, query.most}, &sample});
  }
}

// What is nearly there gets the memory first. Those without a place leave.
void ModelDrafter::place_askers(int64_t room) {
  sort_nearest_first(askers_);
  asking_.clear();
  for (const Asker& asker : askers_) asking_.push_back(asker.sample);
  samples_.begin_round(asking_);
  std::erase_if(askers_, [this](Asker& asker) { return !place(asker); });
  if (std::ssize(askers_) > room) askers_.resize(static_cast<size_t>(room));
}

bool ModelDrafter::place(Asker& asker) {
  const Sequence& sequence = asker.sample->sequence;
  const int64_t drawn = sequence.num_tokens();
  const int64_t end = config_.max_positions - sequence.group->prompt_tokens();
  // The last guess is not computed.
  asker.most = std::min(asker.most, end - drawn + 1);
  if (asker.most < 1) return false;
  if (samples_.place(*asker.sample, drawn + asker.most - 1)) return true;
  if (!samples_.place(*asker.sample, drawn)) return false;
  asker.most = std::min(asker.most, sequence.slots - drawn + 1);
  return true;
}

void ModelDrafter::plan_step() {
  plan_.clear();
  parts_.clear();
  drawers_.clear();
  for (Asker& asker : askers_) {
    if (room() == 0) break;
    if (add_prompt(asker)) add_response(asker);
  }
  if (options_.draws_in_every_row) draw_in_every_row();
}

// A chunk of the prompt, if some of it is missing; whether all of it is there then.
bool ModelDrafter::add_prompt(const Asker& asker) {
  const Sequence& sequence = asker.sample->sequence;
  Group& group = *sequence.group;
  if (group.is_computed()) return true;
  int64_t planned = group.computed;
  for (const Part& part : parts_) {
    if (part.group == &group && part.sample == nullptr) planned += part.num_tokens;
  }
  const int64_t chunk = std::min(room(), group.prompt_tokens() - planned);
  for (int64_t p = planned; p < planned + chunk; ++p) {
    add_row(sequence, p, group.prompt[static_cast<size_t>(p)]);
  }
  if (chunk > 0) parts_.push_back({&group, nullptr, chunk});
  return planned + chunk == group.prompt_tokens();
}

// What was drawn or guessed and is not in the cache, and a guess behind it if it is all.
void ModelDrafter::add_response(Asker& asker) {
  DraftedSample& sample = *asker.sample;
  const Sequence& sequence = sample.sequence;
  const int64_t drawn = sample.num_drawn();
  const int64_t begin = std::ssize(sample.written);
  const int64_t end = drawn + asker.num_guesses();
  const int64_t chunk = std::min(room(), end - begin);
  const int64_t prompt = sequence.group->prompt_tokens();
  for (int64_t i = begin; i < begin + chunk; ++i) {
    add_row(sequence, prompt + i,
            i < drawn ? sequence.completion.tokens[static_cast<size_t>(i)]
                      : asker.query->guesses[static_cast<size_t>(i - drawn)].token);
  }
  if (chunk > 0) parts_.push_back({sequence.group.get(), &sample, chunk});
  if (chunk == 0 || begin + chunk < end) return;
  Draw draw;
  draw.row = plan_.num_tokens() - 1;
  draw.sampling = sequence.request.sampling;
  draw.uniform = uniform_at(sequence.request, prompt + end);
  plan_.draws.push_back(std::move(draw));
  drawers_.push_back(&asker);
}

void ModelDrafter::add_row(const Sequence& lane_of, int64_t position, int32_t token) {
  const int64_t table_row = lane_of.lane * config_.max_positions;
  plan_.tokens.push_back(token);
  plan_.position.push_back(static_cast<int32_t>(position));
  plan_.slot.push_back(samples_.slot_table()[table_row + position]);
  plan_.first.push_back(table_row);
  plan_.count.push_back(static_cast<int32_t>(position + 1));
}

void ModelDrafter::draw_in_every_row() {
  const int64_t rows = plan_.num_tokens();
  if (rows > config_.max_logit_rows || std::ssize(plan_.draws) == rows) return;
  std::vector<Draw> draws(static_cast<size_t>(rows));
  std::vector<Asker*> drawers(static_cast<size_t>(rows), nullptr);
  for (int64_t row = 0; row < rows; ++row) {
    draws[static_cast<size_t>(row)].row = row;
    draws[static_cast<size_t>(row)].sampling.temperature = 0.0f;
  }
  for (size_t i = 0; i < plan_.draws.size(); ++i) {
    const auto row = static_cast<size_t>(plan_.draws[i].row);
    draws[row] = std::move(plan_.draws[i]);
    drawers[row] = drawers_[i];
  }
  plan_.draws = std::move(draws);
  drawers_ = std::move(drawers);
}

// Returns how many guesses came of it.
int64_t ModelDrafter::run_step(DraftPolicy& policy) {
  runner_->run(plan_, samples_.slot_table());
  int64_t row = 0;
  for (const Part& part : parts_) {
    if (part.sample == nullptr) {
      samples_.add_computed(*part.group, part.num_tokens);
    } else {
      const auto tokens = plan_.tokens.begin() + row;
      part.sample->written.insert(part.sample->written.end(), tokens, tokens + part.num_tokens);
    }
    row += part.num_tokens;
  }
  int64_t num_guesses = 0;
  for (size_t i = 0; i < plan_.draws.size(); ++i) {
    if (drawers_[i] == nullptr) continue;
    take_guess(*drawers_[i], plan_.draws[i], version_, policy);
    ++num_guesses;
  }
  return num_guesses;
}

int64_t ModelDrafter::num_bytes() const {
  // A token that was drawn, and one that was written; the slot table.
  constexpr int64_t kBytesPerToken = 4 + 4;
  return kBytesPerToken * samples_.num_tokens() + 4 * config_.max_running * config_.max_positions;
}

}  // namespace nibble
