#include "rollout/engine/rank_leader.h"

#include <mutex>
#include <utility>

#include "core/base/fail.h"
#include "core/base/log.h"
#include "rollout/engine/rank_message.h"
#include "rollout/engine/rank_tags.h"
#include "rollout/engine/slot_changes.h"

namespace nibble {

struct RankLeader::Link {
  explicit Link(ProcessGroup& group) : control(group) {}

  // The caller holds `mutex`.
  void tell(RankHeader header, std::span<const std::byte> body = {}) {
    header.body_bytes = std::ssize(body);
    std::vector<std::unique_ptr<PendingTransfer>> sends;
    for (int r = 1; r < control.world(); ++r) {
      sends.push_back(control.send(std::as_bytes(std::span(&header, 1)), r, kRankHeaderTag));
      if (!body.empty()) sends.push_back(control.send(body, r, kRankBodyTag));
    }
    for (const auto& send : sends) send->wait();
  }

  ProcessGroup& control;
  std::mutex mutex;         // held for an order and what all ranks do about it
  int64_t next_runner = 0;  // guarded by mutex
};

class RankLeader::Runner final : public StepRunner {
 public:
  Runner(Link& link, const StepRunnerFactory& make_own, std::vector<int64_t> graph_batches,
         const ModelSpec& spec, const EngineConfig& config)
      : link_(link), changes_(config.max_running * config.max_positions) {
    const std::lock_guard lock(link_.mutex);
    number_ = link_.next_runner++;
    link_.tell({RankOrder::kMake, number_},
               encode_runner_sizes({config, std::move(graph_batches)}));
    own_ = make_own(spec, config);
  }
  ~Runner() override {
    const std::lock_guard lock(link_.mutex);
    try {
      link_.tell({RankOrder::kDrop, number_});
    } catch (const Error& error) {
      // They are gone, and whatever they held with them.
      get_logger("engine")->warn("ranks did not hear of a runner's end: {}", error.what());
    }
  }

  void set_weights(const ops::WeightSource& weights, int64_t version) override {
    const std::lock_guard lock(link_.mutex);
    link_.tell({RankOrder::kWeights, number_, version});
    own_->set_weights(weights, version);
  }

  void release_weights() override {
    const std::lock_guard lock(link_.mutex);
    link_.tell({RankOrder::kRelease, number_});
    own_->release_weights();
  }

  void run(StepPlan& plan, const int32_t* slot_table) override {
    slot_changes_.clear();
    changes_.visit(plan, slot_table,
                   [&](int64_t index, int32_t slot) { slot_changes_.emplace_back(index, slot); });
    const std::lock_guard lock(link_.mutex);
    link_.tell({RankOrder::kStep, number_}, encode_step(plan, slot_changes_));
    own_->run(plan, slot_table);
  }

  std::span<const int32_t> routes(int64_t moe_layer) const override {
    return own_->routes(moe_layer);
  }

 private:
  Link& link_;
  int64_t number_ = 0;
  std::unique_ptr<StepRunner> own_;
  SlotChanges changes_;
  std::vector<std::pair<int64_t, int32_t>> slot_changes_;
};

RankLeader::RankLeader(ProcessGroup& control) : link_(std::make_unique<Link>(control)) {
  NIBBLE_CHECK(control.rank() == 0, "rank {} does not lead", control.rank());
}

RankLeader::~RankLeader() {
  const std::lock_guard lock(link_->mutex);
  try {
    link_->tell({RankOrder::kEnd});
  } catch (const Error& error) {
    get_logger("engine")->warn("ranks did not hear of the end: {}", error.what());
  }
}

StepRunnerFactory RankLeader::factory(StepRunnerFactory make_own,
                                      std::vector<int64_t> graph_batches) {
  return [link = link_.get(), make_own = std::move(make_own),
          graph_batches = std::move(graph_batches)](const ModelSpec& spec,
                                                    const EngineConfig& config) {
    return std::make_unique<Runner>(*link, make_own, graph_batches, spec, config);
  };
}

}  // namespace nibble
