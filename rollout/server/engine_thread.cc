#include "rollout/server/engine_thread.h"

#include <chrono>
#include <utility>

#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

// How long an idle engine waits before it looks for late jobs again.
constexpr std::chrono::milliseconds kIdle{200};

}  // namespace

EngineThread::EngineThread(std::function<ServedEngine()> make, int64_t capacity)
    : capacity_(capacity) {
  thread_.emplace(
      [this, make = std::move(make)](const std::stop_token& stop) { run(make, stop); });
}

EngineThread::~EngineThread() { stop(Deadline::after(std::chrono::milliseconds(0))); }

EngineThread::Enqueued EngineThread::enqueue(EngineJob job) {
  const std::lock_guard lock(mutex_);
  if (is_closed_ || snapshot_.state != EngineState::kReady) return {EnqueueOutcome::kNotServing};
  if (job.size() > capacity_ - num_open_) return {EnqueueOutcome::kFull};
  num_open_ += job.size();
  const uint64_t number = next_job_++;
  arrivals_.push_back({number, std::move(job)});
  wake_.notify_all();
  return {EnqueueOutcome::kAccepted, number};
}

void EngineThread::cancel(uint64_t job) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(job);
  wake_.notify_all();
}

EngineSnapshot EngineThread::snapshot() const {
  const std::lock_guard lock(mutex_);
  EngineSnapshot snapshot = snapshot_;
  snapshot.open_samples = num_open_;
  return snapshot;
}

void EngineThread::stop(Deadline deadline) {
  if (!thread_) return;
  {
    std::unique_lock lock(mutex_);
    is_closed_ = true;
    fewer_.wait_until(lock, deadline.time(), [this] { return num_open_ == 0; });
  }
  thread_->request_stop();
  thread_.reset();
}

void EngineThread::publish(EngineState state, const std::string& failure) {
  const std::lock_guard lock(mutex_);
  snapshot_.state = state;
  snapshot_.failure = failure;
  if (served_.engine == nullptr) return;
  snapshot_.stats = served_.engine->stats();
  snapshot_.kv_slots = served_.engine->config().kv_slots;
  snapshot_.version = served_.engine->version();
}

void EngineThread::run(const std::function<ServedEngine()>& make, const std::stop_token& stop) {
  try {
    served_ = make();
    publish(EngineState::kReady);
    serve(stop);
    end_all(Error(ErrorCode::kUnavailable, "the server is shutting down"));
    publish(EngineState::kStopped);
  } catch (const std::exception& error) {
    // Who waits for an answer must hear of it, before the thread keeps it for check().
    publish(EngineState::kFailed, error.what());
    end_all(Error(ErrorCode::kInternal, fmt::format("the engine failed: {}", error.what())));
    throw;
  }
}

void EngineThread::serve(const std::stop_token& stop) {
  while (take_arrivals(stop)) {
    end_late_jobs();
    score_prompts();
    served_.engine->step();
    hand_out_finished();
    publish(EngineState::kReady);
  }
}

// False when it is time to stop.
bool EngineThread::take_arrivals(const std::stop_token& stop) {
  std::deque<Arrival> arrivals;
  std::vector<uint64_t> cancelled;
  {
    std::unique_lock lock(mutex_);
    if (jobs_.empty()) {
      wake_.wait_for(lock, stop, kIdle,
                     [this] { return !arrivals_.empty() || !cancelled_.empty(); });
    }
    arrivals.swap(arrivals_);
    cancelled.swap(cancelled_);
  }
  for (Arrival& arrival : arrivals) begin(arrival.number, std::move(arrival.job));
  for (const uint64_t job : cancelled) end_job(job, Error(ErrorCode::kCancelled, "cancelled"));
  return !stop.stop_requested();
}

void EngineThread::begin(uint64_t number, EngineJob job) {
  OpenJob& open = jobs_[number];
  open.weight = open.num_missing = job.size();
  std::vector<GenerateRequest> samples = std::move(job.samples);
  open.job = std::move(job);
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i].id = next_id_++;
    samples[i].on_token = [listener = open.job.listener.get(), i](const Completion& so_far) {
      listener->token_drawn(i, so_far);
    };
    open.sample_ids.push_back(samples[i].id);
    sample_of_[samples[i].id] = {number, i};
  }
  try {
    const SubmitOutcome outcome = served_.engine->submit(std::move(samples));
    NIBBLE_CHECK(outcome == SubmitOutcome::kAccepted, "the engine's queue is full below {} samples",
                 capacity_);
  } catch (const Error& error) {
    end_job(number, error);
  }
}

void EngineThread::end_late_jobs() {
  std::vector<uint64_t> late;
  for (const auto& [number, open] : jobs_) {
    if (open.job.deadline.expired()) late.push_back(number);
  }
  for (const uint64_t number : late) {
    end_job(number, Error(ErrorCode::kDeadlineExceeded, "the request took too long"));
  }
}

void EngineThread::score_prompts() {
  if (scorer_ == nullptr || !scorer_->is_busy()) {
    for (auto& [number, open] : jobs_) {
      if (open.next_prompt == open.job.prompts_to_score.size()) continue;
      if (scorer_ == nullptr) scorer_ = served_.make_scorer();
      scored_job_ = number;
      scorer_->begin(open.job.prompts_to_score[open.next_prompt], open.job.num_top_of_prompts);
      break;
    }
  }
  if (scorer_ == nullptr || !scorer_->is_busy() || !scorer_->step()) return;
  OpenJob& open = jobs_.at(scored_job_);
  open.job.listener->prompt_scored(open.next_prompt++, scorer_->take());
  one_less(scored_job_);
}

void EngineThread::hand_out_finished() {
  for (Completion& done : served_.engine->take_finished()) {
    const auto it = sample_of_.find(done.id);
    if (it == sample_of_.end()) continue;  // of a job that was ended
    const auto [number, index] = it->second;
    sample_of_.erase(it);
    jobs_.at(number).job.listener->sample_done(index, std::move(done));
    one_less(number);
  }
}

void EngineThread::one_less(uint64_t number) {
  const auto it = jobs_.find(number);
  if (--it->second.num_missing > 0) return;
  const int64_t weight = it->second.weight;
  jobs_.erase(it);
  const std::lock_guard lock(mutex_);
  num_open_ -= weight;
  fewer_.notify_all();
}

void EngineThread::end_job(uint64_t number, const Error& error) {
  const auto it = jobs_.find(number);
  if (it == jobs_.end()) return;  // over already
  for (const uint64_t id : it->second.sample_ids) {
    if (sample_of_.erase(id) > 0) served_.engine->abort(id);
  }
  if (scorer_ != nullptr && scorer_->is_busy() && scored_job_ == number) scorer_->cancel();
  it->second.job.listener->failed(error);
  it->second.num_missing = 1;
  one_less(number);
}

void EngineThread::end_all(const Error& error) {
  std::deque<Arrival> arrivals;
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    arrivals.swap(arrivals_);
  }
  for (const Arrival& arrival : arrivals) {
    arrival.job.listener->failed(error);
    const std::lock_guard lock(mutex_);
    num_open_ -= arrival.job.size();
  }
  while (!jobs_.empty()) end_job(jobs_.begin()->first, error);
  const std::lock_guard lock(mutex_);
  fewer_.notify_all();
}

}  // namespace nibble
