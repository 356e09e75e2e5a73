#include "rollout/engine/rank_follower.h"

#include <chrono>
#include <map>
#include <utility>
#include <vector>

#include "core/base/fail.h"
#include "rollout/engine/rank_tags.h"

namespace nibble {
namespace {

// A server may have nothing to do for days; a leader that is gone is noticed at once.
constexpr auto kLongestIdle = std::chrono::hours(24 * 365);
// A step's tokens and slots are far less.
constexpr int64_t kMaxBody = int64_t{1} << 32;

/// This rank's part of one runner, and the leader's table of slots.
class FollowedRunner {
 public:
  FollowedRunner(const FollowerParts& parts, RunnerSizes sizes)
      : sizes_(std::move(sizes)),
        slot_table_(static_cast<size_t>(sizes_.config.max_running * sizes_.config.max_positions)),
        runner_(parts.make_runner(sizes_)) {}

  void set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) {
    runner_->set_weights(*weights, version);
    weights_ = std::move(weights);
  }

  void release_weights() {
    runner_->release_weights();
    weights_ = nullptr;
  }

  void run(std::span<const std::byte> body) {
    if (weights_ == nullptr)
      fail(ErrorCode::kDataLoss, "a rank's order to compute without weights");
    decode_step(body, order_);
    const auto entries = static_cast<int64_t>(slot_table_.size());
    for (const auto& [index, slot] : order_.slot_changes) {
      if (index < 0 || index >= entries) {
        fail(ErrorCode::kDataLoss, "a rank's order changes entry {} of {} slots", index, entries);
      }
      slot_table_[static_cast<size_t>(index)] = slot;
    }
    const StepPlan& plan = order_.plan;
    for (size_t t = 0; t < plan.first.size(); ++t) {
      if (plan.first[t] < 0 || plan.count[t] < 0 || plan.first[t] > entries - plan.count[t]) {
        fail(ErrorCode::kDataLoss, "a rank's order reads slots from {} on of {}", plan.first[t],
             entries);
      }
    }
    runner_->run(order_.plan, slot_table_.data());
  }

 private:
  const RunnerSizes sizes_;  // the runner may refer to them
  std::vector<int32_t> slot_table_;
  std::shared_ptr<const ops::WeightSource> weights_;  // shared: with whoever receives them
  std::unique_ptr<StepRunner> runner_;
  StepOrder order_;
};

std::vector<std::byte> receive(ProcessGroup& control, int64_t bytes, int tag) {
  std::vector<std::byte> body(static_cast<size_t>(bytes));
  control.receive(body, 0, tag)->wait_until(Deadline::after(kLongestIdle));
  return body;
}

}  // namespace

void follow_leader(ProcessGroup& control, const FollowerParts& parts) {
  std::map<int64_t, FollowedRunner> runners;
  const auto runner = [&](const RankHeader& header) -> FollowedRunner& {
    const auto found = runners.find(header.runner);
    if (found == runners.end()) {
      fail(ErrorCode::kDataLoss, "an order for runner {}, which is not there", header.runner);
    }
    return found->second;
  };
  for (;;) {
    RankHeader header;
    control.receive(std::as_writable_bytes(std::span(&header, 1)), 0, kRankHeaderTag)
        ->wait_until(Deadline::after(kLongestIdle));
    if (header.body_bytes < 0 || header.body_bytes > kMaxBody) {
      fail(ErrorCode::kDataLoss, "a rank's order of {} bytes", header.body_bytes);
    }
    const std::vector<std::byte> body = header.body_bytes == 0
                                            ? std::vector<std::byte>()
                                            : receive(control, header.body_bytes, kRankBodyTag);
    switch (header.order) {
      case RankOrder::kMake:
        runners.try_emplace(header.runner, parts, decode_runner_sizes(body));
        break;
      case RankOrder::kWeights:
        runner(header).set_weights(parts.weights(header.version), header.version);
        break;
      case RankOrder::kRelease:
        runner(header).release_weights();
        break;
      case RankOrder::kStep:
        runner(header).run(body);
        break;
      case RankOrder::kDrop:
        runners.erase(header.runner);
        break;
      case RankOrder::kEnd:
        return;
      default:
        fail(ErrorCode::kDataLoss, "a rank's order number {}", static_cast<int64_t>(header.order));
    }
  }
}

}  // namespace nibble
