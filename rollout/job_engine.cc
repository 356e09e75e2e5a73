#include "rollout/job_engine.h"

#include <utility>

#include "core/base/fail.h"
#include "core/device/cuda_device.h"
#include "rollout/engine_setup.h"

namespace nibble {

JobEngine::JobEngine(RolloutWorkerOptions options, int number)
    : options_(std::move(options)), number_(number) {}

JobEngine::~JobEngine() {
  thread_.run([&] { worker_.reset(); });
}

void JobEngine::start(const Rendezvous& at) {
  if (!spec_) spec_.emplace(model_spec(options_.model, options_.lora));
  thread_.run([&] {
    if (!worker_ && !following_) make_engine(at);
  });
}

void JobEngine::make_engine(const Rendezvous& at) {
  const bool on_gpu = options_.gpu != nullptr;
  if (has_ranks()) {
    if (on_gpu) ops::bind_cuda_thread();
    rank_ = std::make_unique<EngineRank>(at, mesh(), rank(), on_gpu);
    options_.rank = rank_.get();
  }
  try {
    if (rank() == 0) {
      worker_ = std::make_unique<RolloutWorker>(options_);
    } else {
      following_ = std::make_unique<FollowingWorker>(options_, *spec_);
    }
  } catch (...) {
    options_.rank = nullptr;
    rank_.reset();  // the others must not wait for this one
    throw;
  }
}

RolloutWorker& JobEngine::worker() {
  if (following_) {
    fail(ErrorCode::kFailedPrecondition, "rollout/{} computes with rollout/{}: ask that", number_,
         number_ - rank());
  }
  if (!worker_) fail(ErrorCode::kFailedPrecondition, "engine {} has not started", number_);
  return *worker_;
}

double JobEngine::swap(const ServedWeights& served) {
  if (following_) {
    following_->check();
    following_->set_weights(served.weights, served.version);
    return 0.0;
  }
  return thread_.run_within([&] { return worker().set_weights(served.weights, served.version); });
}

int64_t JobEngine::release_weights() {
  if (following_) return following_->release_weights();
  return thread_.run_within([&] {
    worker().release_weights();
    return worker().version();
  });
}

}  // namespace nibble
