#include "benchmarks/generation.h"

#include <algorithm>
#include <random>

#include "core/base/fail.h"
#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int64_t kPrompt = 16;

std::unique_ptr<Engine> make_engine(const ModelSpec& spec, Member& member, int64_t batch,
                                    int64_t context) {
  EngineConfig config;
  config.max_running = batch;
  config.max_step_tokens = std::max<int64_t>(1024, batch);
  config.max_positions = context;
  config.kv_slots = batch * context;
  config.max_logit_rows = std::max<int64_t>(64, batch);
  if (member.device() == DeviceKind::kCpu) {
    return std::make_unique<Engine>(spec, config, ops::torch_parallel());
  }
  return std::make_unique<Engine>(
      spec, config, cuda_step_runner(member.backend(Numerics::kFast), {Numerics::kFast, {batch}}));
}

}  // namespace

Generation::Generation(const ModelSpec& spec, Member& member, int64_t batch, int64_t context)
    : batch_(batch),
      context_(context),
      engine_(make_engine(spec, member, batch, context)),
      task_([this](const std::stop_token& stop) { run(stop); }) {}

void Generation::run(const std::stop_token& stop) {
  ops::bind_cuda_thread();
  for (;;) {
    std::optional<ServedWeights> weights;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, stop, [&] { return pending_.has_value() || is_running_; });
      if (stop.stop_requested()) return;
      weights = std::exchange(pending_, std::nullopt);
    }
    if (!weights) {
      step();
      continue;
    }
    const Stopwatch watch;
    engine_->set_weights(std::move(weights->weights), weights->version);
    const double ms = watch.elapsed_ms();
    const std::lock_guard lock(mutex_);
    swap_ms_ = ms;
    changed_.notify_all();
  }
}

// A whole batch begins and ends together, because all have the same length.
void Generation::step() {
  if (!engine_->has_work()) {
    (void)engine_->take_finished();
    std::vector<GenerateRequest> requests;
    for (int64_t i = 0; i < batch_; ++i) {
      GenerateRequest request;
      request.id = request.prompt_id = next_id_++;
      std::mt19937 random(static_cast<unsigned>(request.id));
      for (int64_t t = 0; t < kPrompt; ++t) {
        request.prompt.push_back(static_cast<int32_t>(random() % 1000));
      }
      request.max_new_tokens = context_ - kPrompt;
      requests.push_back(std::move(request));
    }
    NIBBLE_CHECK(engine_->submit(std::move(requests)) == SubmitOutcome::kAccepted, "queue");
  }
  Step step{SteadyClock::now(), {}, 0};
  step.tokens = engine_->step();
  step.end = SteadyClock::now();
  const std::lock_guard lock(mutex_);
  if (step.tokens == batch_) steps_.push_back(step);
  changed_.notify_all();
}

template <typename Condition>
void Generation::wait_until(Condition condition) {
  const Deadline deadline = Deadline::after(kPatience);
  std::unique_lock lock(mutex_);
  while (!condition()) {
    changed_.wait_for(lock, 50ms);
    task_.check();
    if (deadline.expired()) fail(ErrorCode::kDeadlineExceeded, "the engine did not answer");
  }
}

double Generation::swap(ServedWeights weights) {
  {
    const std::lock_guard lock(mutex_);
    swap_ms_ = -1.0;
    pending_ = std::move(weights);
    changed_.notify_all();
  }
  wait_until([&] { return swap_ms_ >= 0.0; });
  const std::lock_guard lock(mutex_);
  return swap_ms_;
}

void Generation::set_running(bool running) {
  const std::lock_guard lock(mutex_);
  is_running_ = running;
  changed_.notify_all();
}

void Generation::wait_for_steps(size_t count) {
  size_t before = 0;
  {
    const std::lock_guard lock(mutex_);
    before = steps_.size();
  }
  wait_until([&] { return steps_.size() >= before + count; });
}

std::vector<Generation::Step> Generation::steps() const {
  const std::lock_guard lock(mutex_);
  return steps_;
}

}  // namespace nibble
