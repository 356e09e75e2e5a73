#include <algorithm>
#include <numeric>
#include <optional>

#include "cli/log_prob_path.h"
#include "core/kernels/linear.h"
#include "core/kernels/log_softmax.h"
#include "core/models/arena_executor.h"
#include "core/models/kv_cache.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

// Logits of this many tokens exist at a time: 16 MiB of float32.
int64_t head_rows(int64_t vocab) { return std::max<int64_t>(16, (int64_t{4} << 20) / vocab); }

class RolloutPath final : public LogProbPath {
 public:
  RolloutPath(const ModelSpec& spec, ResidentWeights& weights, const LogProbOptions& options)
      : spec_(spec), weights_(weights), options_(options) {}

  ScoredSequence score(std::span<const int32_t> ids) override {
    reserve(static_cast<int64_t>(ids.size()));
    ScoredSequence scored;
    if (options_.wants_routes) {
      scored.routes.resize(static_cast<size_t>(spec_.config.num_moe_layers()));
    }
    const auto count = static_cast<int64_t>(ids.size());
    for (int64_t begin = 0; begin < count; begin += options_.chunk_tokens) {
      run_chunk(ids, begin, std::min(options_.chunk_tokens, count - begin), scored);
    }
    return scored;
  }

 private:
  void reserve(int64_t tokens) {
    if (cache_ && cache_->num_slots() >= tokens) return;
    const int64_t positions = padded_positions(spec_.config, tokens);
    cache_.emplace(spec_.config, positions);
    executor_.emplace(spec_, ArenaExecutor::Limits{options_.chunk_tokens, positions},
                      ops::torch_parallel(), options_.activations);
    slot_.resize(static_cast<size_t>(positions));
    std::iota(slot_.begin(), slot_.end(), 0);
  }

  void run_chunk(std::span<const int32_t> ids, int64_t begin, int64_t count,
                 ScoredSequence& scored) {
    // Position p of the only sequence is in slot p, and a token sees all slots up to its own.
    const auto at = static_cast<size_t>(begin);
    const auto size = static_cast<size_t>(count);
    const std::vector<int64_t> first(size, 0);
    std::vector<int32_t> visible(size);
    std::iota(visible.begin(), visible.end(), static_cast<int32_t>(begin) + 1);
    const std::span positions = std::span(slot_).subspan(at, size);
    const ArenaStep step{
        ids.subspan(at, size), positions, positions, {slot_.data(), first.data(), visible.data()}};
    const float* hidden = executor_->run(step, weights_, *cache_);
    for (size_t layer = 0; layer < scored.routes.size(); ++layer) {
      const auto route = executor_->routes(static_cast<int64_t>(layer));
      scored.routes[layer].insert(scored.routes[layer].end(), route.begin(), route.end());
    }
    const int64_t with_target = std::min(count, static_cast<int64_t>(ids.size()) - 1 - begin);
    append_log_probs(hidden, ids.subspan(at + 1), with_target, scored.log_prob);
  }

  void append_log_probs(const float* hidden, std::span<const int32_t> next, int64_t count,
                        std::vector<float>& log_prob) {
    const kernels::WeightView head = weights_.weight(spec_.table.lm_head);
    const int64_t vocab = head.rows;
    const int64_t most = head_rows(vocab);
    for (int64_t begin = 0; begin < count; begin += most) {
      const int64_t rows = std::min(most, count - begin);
      logits_.resize(static_cast<size_t>(rows * vocab));
      stats_.resize(static_cast<size_t>(rows));
      kernels::linear(hidden + begin * head.cols, head, rows, logits_.data(), vocab,
                      ops::torch_parallel());
      kernels::log_softmax_stats(logits_.data(), rows, vocab, options_.temperature, stats_.data(),
                                 ops::torch_parallel());
      for (int64_t r = 0; r < rows; ++r) {
        const int32_t target = next[static_cast<size_t>(begin + r)];
        const float logit = logits_[static_cast<size_t>(r * vocab + target)];
        log_prob.push_back(stats_[static_cast<size_t>(r)].log_prob(logit, options_.temperature));
      }
    }
  }

  const ModelSpec& spec_;
  ResidentWeights& weights_;
  const LogProbOptions options_;
  std::optional<KvCache> cache_;
  std::optional<ArenaExecutor> executor_;
  std::vector<int32_t> slot_;  // 0, 1, 2, ...
  std::vector<float> logits_;
  std::vector<kernels::RowStats> stats_;
};

}  // namespace

std::unique_ptr<LogProbPath> make_rollout_path(const ModelSpec& spec, ResidentWeights& weights,
                                               const LogProbOptions& options) {
  return std::make_unique<RolloutPath>(spec, weights, options);
}

}  // namespace nibble
