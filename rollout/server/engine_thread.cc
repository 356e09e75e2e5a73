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
    : capacity_(capacity), make_(std::move(make)) {}

void EngineThread::start() {
  thread_.emplace([this](const std::stop_token& stop) { run(stop); });
}

EngineThread::~EngineThread() { (void)stop(Deadline::after(std::chrono::milliseconds(0))); }

EngineThread::Enqueued EngineThread::enqueue(EngineJob job) {
  const std::lock_guard lock(mutex_);
  if (is_closed_ || snapshot_.state != EngineState::kReady) return {EnqueueOutcome::kNotServing};
  const int64_t weight = job.weight();
  if (weight > capacity_ - num_open_) return {EnqueueOutcome::kFull};
  num_open_ += weight;
  const uint64_t number = next_job_++;
  arrivals_.push_back({number, weight, std::move(job)});
  wake_.notify_all();
  return {EnqueueOutcome::kAccepted, number};
}

void EngineThread::cancel(uint64_t job) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(job);
  wake_.notify_all();
}

bool EngineThread::set_paused(bool is_paused, std::function<void()> done) {
  const std::lock_guard lock(mutex_);
  if (is_closed_ || snapshot_.state != EngineState::kReady) return false;
  wants_pause_ = is_paused;
  pause_done_.push_back(std::move(done));
  wake_.notify_all();
  return true;
}

EngineSnapshot EngineThread::snapshot() const {
  const std::lock_guard lock(mutex_);
  EngineSnapshot snapshot = snapshot_;
  snapshot.open_samples = num_open_;
  if (in_step_) snapshot.step_s = in_step_->elapsed_ms() / 1e3;
  if (is_closed_ && snapshot.state == EngineState::kReady) snapshot.state = EngineState::kStopping;
  return snapshot;
}

void EngineThread::check() const {
  const std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

bool EngineThread::stop(Deadline deadline, std::chrono::milliseconds for_step) {
  if (!thread_) return true;
  {
    std::unique_lock lock(mutex_);
    is_closed_ = true;
    wants_pause_ = false;  // or what is open could not end
    wake_.notify_all();
    fewer_.wait_until(lock, deadline.time(), [this] { return num_open_ == 0; });
  }
  thread_->request_stop();
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, for_step, [this] { return has_ended_; });
}

void EngineThread::publish(EngineState state, const std::string& failure) {
  const std::lock_guard lock(mutex_);
  snapshot_.state = state;
  snapshot_.failure = failure;
  if (served_.engine == nullptr) return;
  snapshot_.stats = served_.engine->stats();
  snapshot_.kv_slots = served_.engine->config().kv_slots;
  snapshot_.version = served_.engine->version();
  snapshot_.is_paused = served_.engine->is_paused();
}

void EngineThread::run(const std::stop_token& stop) {
  try {
    served_ = make_();
    publish(EngineState::kReady);
    serve(stop);
    end_all(Error(ErrorCode::kUnavailable, "the server is shutting down"));
    publish(EngineState::kStopped);
    end(nullptr);
  } catch (const std::exception& error) {
    // Who waits for an answer must hear of it, before it is kept for check().
    publish(EngineState::kFailed, error.what());
    end_all(Error(ErrorCode::kInternal, fmt::format("the engine failed: {}", error.what())));
    end(std::current_exception());
  }
}

// Nothing of the engine, nor of a listener, is held from here on.
void EngineThread::end(std::exception_ptr failure) {
  scorer_.reset();
  served_ = {};
  const std::lock_guard lock(mutex_);
  failure_ = std::move(failure);
  has_ended_ = true;
  ended_.notify_all();
}

void EngineThread::serve(const std::stop_token& stop) {
  while (take_arrivals(stop)) {
    end_late_jobs();
    if (!served_.engine->is_paused()) {
      note_step(true);
      score_prompts();
      served_.engine->step();
      note_step(false);
    }
    hand_out_finished();
    publish(EngineState::kReady);
  }
}

void EngineThread::note_step(bool begins) {
  const std::lock_guard lock(mutex_);
  in_step_.reset();
  if (begins) in_step_.emplace();
}

// False when it is time to stop.
bool EngineThread::take_arrivals(const std::stop_token& stop) {
  std::deque<Arrival> arrivals;
  std::vector<uint64_t> cancelled;
  std::vector<std::function<void()>> pause_done;
  bool wants_pause = false;
  {
    std::unique_lock lock(mutex_);
    const bool is_paused = served_.engine->is_paused();
    if (jobs_.empty() || is_paused) {
      wake_.wait_for(lock, stop, kIdle, [&] {
        return !arrivals_.empty() || !cancelled_.empty() || !pause_done_.empty() ||
               wants_pause_ != is_paused;
      });
    }
    arrivals.swap(arrivals_);
    cancelled.swap(cancelled_);
    pause_done.swap(pause_done_);
    wants_pause = wants_pause_;
  }
  for (Arrival& arrival : arrivals) begin(std::move(arrival));
  for (const uint64_t job : cancelled) end_job(job, Error(ErrorCode::kCancelled, "cancelled"));
  settle_pause(wants_pause, pause_done);
  return !stop.stop_requested();
}

void EngineThread::settle_pause(bool is_paused, const std::vector<std::function<void()>>& done) {
  if (is_paused != served_.engine->is_paused()) {
    is_paused ? served_.engine->pause() : served_.engine->resume();
    publish(EngineState::kReady);
  }
  for (const auto& tell : done) tell();
}

void EngineThread::begin(Arrival arrival) {
  const uint64_t number = arrival.number;
  std::vector<GenerateRequest> samples = std::move(arrival.job.samples);
  OpenJob& open =
      jobs_.emplace(number, OpenJob{.job = std::move(arrival.job), .weight = arrival.weight})
          .first->second;
  open.num_missing = std::ssize(samples) + std::ssize(open.job.prompts_to_score);
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
      try {
        if (scorer_ == nullptr) scorer_ = served_.make_scorer();
      } catch (const std::exception& error) {
        // It takes memory that this machine may lack; requests without it go on.
        return end_job(number, Error(ErrorCode::kResourceExhausted,
                                     fmt::format("cannot score prompts: {}", error.what())));
      }
      scored_job_ = number;
      scorer_->begin(open.job.prompts_to_score[open.next_prompt], open.job.num_top_of_prompts);
      break;
    }
  }
  if (scorer_ == nullptr || !scorer_->is_busy()) return;
  try {
    if (!scorer_->step()) return;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kFailedPrecondition) throw;
    return end_job(scored_job_, error);  // these weights score no such tokens; others may work
  }
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
  std::vector<std::function<void()>> pause_done;
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    arrivals.swap(arrivals_);
    pause_done.swap(pause_done_);
  }
  for (const auto& tell : pause_done) tell();
  for (const Arrival& arrival : arrivals) {
    arrival.job.listener->failed(error);
    const std::lock_guard lock(mutex_);
    num_open_ -= arrival.weight;
  }
  while (!jobs_.empty()) end_job(jobs_.begin()->first, error);
  const std::lock_guard lock(mutex_);
  fewer_.notify_all();
}

}  // namespace nibble
