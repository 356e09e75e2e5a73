#include "rollout/following_worker.h"

#include <chrono>
#include <utility>

#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/device/cuda_device.h"
#include "rollout/engine/rank_follower.h"
#include "rollout/engine_setup.h"

namespace nibble {
namespace {

// The first rank swaps once it has committed; this one may still wait for the coordinator to make
// another attempt at bringing it the version.
constexpr auto kLongestWait = std::chrono::hours(1);
// All workers of a job that is over end within a heartbeat of each other.
constexpr auto kLeaderEnds = std::chrono::seconds(5);

}  // namespace

FollowingWorker::FollowingWorker(const RolloutWorkerOptions& options, const ModelSpec& spec)
    : rank_(*options.rank) {
  (void)plan_engine(options, spec, nullptr);
  thread_ = std::thread([this, &options, &spec] { follow(options, spec); });
}

FollowingWorker::~FollowingWorker() {
  {
    std::unique_lock lock(mutex_);
    is_ending_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, kLeaderEnds, [&] { return has_ended_; });
  }
  rank_.abort();
  thread_.join();
}

void FollowingWorker::follow(const RolloutWorkerOptions& options, const ModelSpec& spec) {
  try {
    if (options.gpu != nullptr) ops::bind_cuda_thread();
    follow_leader(rank_.control(), {[&](const RunnerSizes& sizes) {
                                      return engine_runner(options, sizes.graph_batches)(
                                          spec, sizes.config);
                                    },
                                    [&](int64_t version) { return wait_for(version); }});
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex_);
    if (!is_ending_) {
      get_logger("engine")->error("rank {} stops following: {}", rank_.rank(), error.what());
      const auto* typed = dynamic_cast<const Error*>(&error);
      failure_ = typed != nullptr ? *typed : Error(ErrorCode::kInternal, error.what());
    }
    rank_.abort();  // the others must not wait for this one
  }
  const std::lock_guard lock(mutex_);
  has_ended_ = true;
  changed_.notify_all();
}

std::shared_ptr<const ops::WeightSource> FollowingWorker::wait_for(int64_t version) {
  std::unique_lock lock(mutex_);
  const bool came =
      changed_.wait_for(lock, kLongestWait, [&] { return version_ >= version || is_ending_; });
  if (is_ending_) fail(ErrorCode::kCancelled, "the job is over");
  if (!came) {
    fail(ErrorCode::kDeadlineExceeded,
         "rank {} of an engine has version {}, while the first rank has served {} for an hour",
         rank_.rank(), version_, version);
  }
  return weights_;
}

void FollowingWorker::set_weights(std::shared_ptr<const ResidentWeights> weights, int64_t version) {
  const std::lock_guard lock(mutex_);
  weights_ = std::move(weights);
  version_ = version;
  changed_.notify_all();
}

int64_t FollowingWorker::release_weights() {
  const std::lock_guard lock(mutex_);
  weights_ = nullptr;
  return std::exchange(version_, 0);
}

void FollowingWorker::check() const {
  const std::lock_guard lock(mutex_);
  if (failure_) throw Error(*failure_);
}

}  // namespace nibble
