#include "rollout/server/given_scorer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

// Short enough that requests which decode meanwhile hardly wait.
constexpr int64_t kChunkTokens = 128;
constexpr int64_t kLogitRows = 32;

}  // namespace

EngineConfig GivenScorer::sized(int64_t max_positions) {
  EngineConfig config;
  config.max_running = 1;
  config.max_step_tokens = kChunkTokens;
  config.max_positions = max_positions;
  config.kv_slots = max_positions;
  config.max_logit_rows = kLogitRows;
  return config;
}

GivenScorer::GivenScorer(const ModelSpec& spec, const StepRunnerFactory& make_runner,
                         const ops::WeightSource& weights, int64_t max_positions)
    : spec_(spec),
      config_(sized(max_positions)),
      runner_(make_runner(spec_, config_)),
      slot_(static_cast<size_t>(max_positions)) {
  runner_->set_weights(weights, 1);
  std::iota(slot_.begin(), slot_.end(), 0);
}

void GivenScorer::begin(std::vector<int32_t> ids, int32_t num_top) {
  ids_ = std::move(ids);
  num_top_ = num_top;
  num_done_ = 0;
  scored_.clear();
}

bool GivenScorer::step() {
  // Position p of the only sequence is in slot p, and a token sees all slots up to its own.
  plan_.clear();
  const size_t end = std::min(ids_.size(), num_done_ + static_cast<size_t>(kChunkTokens));
  for (size_t at = num_done_; at < end; ++at) {
    plan_.tokens.push_back(ids_[at]);
    plan_.position.push_back(slot_[at]);
    plan_.slot.push_back(slot_[at]);
    plan_.first.push_back(0);
    plan_.count.push_back(slot_[at] + 1);
    if (at + 1 == ids_.size()) continue;
    Draw draw;
    draw.row = static_cast<int64_t>(at - num_done_);
    draw.given = ids_[at + 1];
    draw.wants_plain = true;
    draw.num_top = num_top_;
    plan_.draws.push_back(draw);
  }
  runner_->run(plan_, slot_.data());
  for (Draw& draw : plan_.draws) {
    if (!std::isfinite(draw.plain_log_prob)) {
      fail(ErrorCode::kFailedPrecondition, "the weights give a token a log-probability of {}",
           draw.plain_log_prob);
    }
    scored_.push_back({draw.plain_log_prob, std::move(draw.top)});
  }
  num_done_ = end;
  return num_done_ == ids_.size();
}

std::vector<GivenToken> GivenScorer::take() {
  ids_.clear();
  return std::exchange(scored_, {});
}

}  // namespace nibble
