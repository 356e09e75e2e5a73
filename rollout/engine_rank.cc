#include "rollout/engine_rank.h"

#include <algorithm>
#include <span>
#include <vector>

#include "core/comm_cuda/nccl_group.h"

namespace nibble {
namespace {

// Of what ranks move within one step.
constexpr auto kStepTimeout = std::chrono::minutes(2);

}  // namespace

EngineRank::EngineRank(const Rendezvous& at, const Mesh& mesh, int rank, bool on_gpu)
    : mesh_(mesh) {
  const auto named = [&](const char* name) {
    Rendezvous meeting = at;
    meeting.group_name = at.group_name + name;
    meeting.transfer_timeout = kStepTimeout;
    return meeting;
  };
  control_ = join_gloo_group(named(".control"), rank, mesh.world);
  if (on_gpu) steps_ = join_nccl_group(named(".steps"), rank, mesh.world);
  if (rank == 0) leader_ = std::make_unique<RankLeader>(*control_);
}

StepRanks EngineRank::step_ranks() const {
  return {steps_ ? steps_.get() : control_.get(), mesh_.expert > 1};
}

int64_t EngineRank::least(int64_t value) {
  std::vector<int64_t> values(static_cast<size_t>(mesh_.world));
  control_
      ->all_gather(std::as_bytes(std::span(&value, 1)), std::as_writable_bytes(std::span(values)))
      ->wait();
  return *std::min_element(values.begin(), values.end());
}

void EngineRank::abort() noexcept {
  control_->abort();
  if (steps_) steps_->abort();
}

}  // namespace nibble
