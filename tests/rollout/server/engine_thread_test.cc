#include "rollout/server/engine_thread.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>

#include "core/kernels/parallel.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

// Keeps what it hears of a job; tests wait until it is over.
class Recorder final : public JobListener {
 public:
  void token_drawn(size_t /*sample*/, const Completion& so_far) override {
    std::unique_lock lock(mutex_);
    num_tokens_ = std::max(num_tokens_, so_far.tokens.size());
    changed_.notify_all();
    changed_.wait_for(lock, 60s, [this] { return !is_holding_; });
  }
  // While it is held, the engine's thread stands still after a token.
  void hold(bool is_holding) {
    const std::lock_guard lock(mutex_);
    is_holding_ = is_holding;
    changed_.notify_all();
  }
  void sample_done(size_t sample, Completion done) override {
    const std::lock_guard lock(mutex_);
    done_.emplace(sample, std::move(done));
    changed_.notify_all();
  }
  void prompt_scored(size_t /*prompt*/, std::vector<GivenToken> tokens) override {
    const std::lock_guard lock(mutex_);
    scored_.push_back(std::move(tokens));
    changed_.notify_all();
  }
  void failed(const Error& error) override {
    const std::lock_guard lock(mutex_);
    failures_.push_back(error.code());
    changed_.notify_all();
  }
  // False if it takes too long.
  template <typename Condition>
  bool wait_until(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 60s, [&] { return condition(*this); });
  }
  std::map<size_t, Completion> done_;
  std::vector<std::vector<GivenToken>> scored_;
  std::vector<ErrorCode> failures_;
  size_t num_tokens_ = 0;

 private:
  bool is_holding_ = false;  // guarded by mutex_
  std::mutex mutex_;
  std::condition_variable changed_;
};

class EngineThreadTest : public ::testing::Test {
 protected:
  static EngineConfig config() {
    EngineConfig config;
    config.max_running = 4;
    config.max_step_tokens = 8;
    config.kv_slots = 256;
    config.max_positions = 128;
    config.max_requests = 16;
    config.max_logit_rows = 4;
    return config;
  }

  // `may_load`: what loading waits for.
  void start(const std::shared_future<void>& may_load = {}) {
    thread_.emplace(
        [this, may_load] {
          if (may_load.valid()) may_load.wait();
          ServedEngine served;
          served.engine = std::make_unique<Engine>(model_.spec, config(), serial_);
          served.engine->set_weights(borrowed(model_.weights), 1);
          served.make_scorer = [this] {
            return std::make_unique<GivenScorer>(
                model_.spec,
                [this](const ModelSpec& spec, const EngineConfig& engine) {
                  return make_cpu_step_runner(spec, engine, serial_);
                },
                model_.weights, 128);
          };
          return served;
        },
        16);
    thread_->start();
    if (!may_load.valid()) wait_for(EngineState::kReady);
  }
  void wait_for(EngineState state) {
    const Deadline deadline = Deadline::after(60s);
    while (thread_->snapshot().state != state && !deadline.expired()) std::this_thread::yield();
    ASSERT_EQ(thread_->snapshot().state, state);
  }
  static EngineJob job(const std::shared_ptr<Recorder>& recorder, int samples, int64_t tokens,
                       std::chrono::milliseconds timeout = 60s) {
    EngineJob job{.samples = {},
                  .prompts_to_score = {},
                  .num_top_of_prompts = 2,
                  .deadline = Deadline::after(timeout),
                  .listener = recorder};
    for (int i = 0; i < samples; ++i) {
      GenerateRequest request;
      request.sample_index = static_cast<uint32_t>(i);
      request.prompt = {1, 2, 3};
      request.max_new_tokens = tokens;
      job.samples.push_back(std::move(request));
    }
    return job;
  }

  // Returns once the engine's thread says that it is so; false if it does not serve.
  bool set_paused(bool is_paused) {
    std::promise<void> done;
    auto is_done = done.get_future();
    if (!thread_->set_paused(is_paused, [&done] { done.set_value(); })) return false;
    EXPECT_EQ(is_done.wait_for(60s), std::future_status::ready);
    return true;
  }

  RandomModel model_{64, 3};
  kernels::Serial serial_;
  std::optional<EngineThread> thread_;
};

TEST_F(EngineThreadTest, SamplesComeBackToTheirJob) {
  start();
  const auto first = std::make_shared<Recorder>();
  const auto second = std::make_shared<Recorder>();
  ASSERT_EQ(thread_->enqueue(job(first, 3, 20)).outcome, EnqueueOutcome::kAccepted);
  ASSERT_EQ(thread_->enqueue(job(second, 1, 5)).outcome, EnqueueOutcome::kAccepted);
  ASSERT_TRUE(first->wait_until([](const Recorder& r) { return r.done_.size() == 3; }));
  ASSERT_TRUE(second->wait_until([](const Recorder& r) { return r.done_.size() == 1; }));
  EXPECT_EQ(second->done_[0].tokens, (std::vector<int32_t>(first->done_[0].tokens.begin(),
                                                           first->done_[0].tokens.begin() + 5)))
      << "the same draws whatever runs beside them";
  EXPECT_EQ(first->num_tokens_, 20u);
}

TEST_F(EngineThreadTest, GivenTokensAreScoredAsTheEngineDrewThem) {
  start();
  const auto drawn = std::make_shared<Recorder>();
  EngineJob draw = job(drawn, 1, 100);
  draw.samples[0].want_plain_log_probs = true;
  draw.samples[0].num_top_log_probs = 2;
  (void)thread_->enqueue(std::move(draw));
  ASSERT_TRUE(drawn->wait_until([](const Recorder& r) { return r.done_.size() == 1; }));
  const Completion& sample = drawn->done_[0];
  std::vector<int32_t> ids = {1, 2, 3};
  ids.insert(ids.end(), sample.tokens.begin(), sample.tokens.end());
  const auto scored = std::make_shared<Recorder>();
  EngineJob score = job(scored, 0, 0);
  score.prompts_to_score = {ids, {5}};
  (void)thread_->enqueue(std::move(score));
  ASSERT_TRUE(scored->wait_until([](const Recorder& r) { return r.scored_.size() == 2; }));
  ASSERT_EQ(scored->scored_[0].size(), ids.size() - 1);
  for (size_t i = 0; i < sample.tokens.size(); ++i) {
    EXPECT_EQ(scored->scored_[0][2 + i].plain_log_prob, sample.plain_log_probs[i]);
    EXPECT_EQ(scored->scored_[0][2 + i].top[1].token, sample.top_log_probs[i][1].token);
  }
  EXPECT_TRUE(scored->scored_[1].empty());
}

TEST_F(EngineThreadTest, WhatDoesNotFitIsRefusedAndComesInLater) {
  start();
  const auto recorder = std::make_shared<Recorder>();
  recorder->hold(true);
  const auto accepted = thread_->enqueue(job(recorder, 10, 120));
  EXPECT_EQ(accepted.outcome, EnqueueOutcome::kAccepted);
  EXPECT_EQ(thread_->enqueue(job(recorder, 7, 1)).outcome, EnqueueOutcome::kFull);
  thread_->cancel(accepted.job);
  recorder->hold(false);
  ASSERT_TRUE(recorder->wait_until([](const Recorder& r) { return !r.failures_.empty(); }));
  EXPECT_EQ(recorder->failures_, std::vector{ErrorCode::kCancelled});
  const Deadline deadline = Deadline::after(60s);
  while (thread_->snapshot().open_samples > 0 && !deadline.expired()) std::this_thread::yield();
  const auto again = std::make_shared<Recorder>();
  EXPECT_EQ(thread_->enqueue(job(again, 16, 1)).outcome, EnqueueOutcome::kAccepted);
  EXPECT_TRUE(again->wait_until([](const Recorder& r) { return r.done_.size() == 16; }));
}

TEST_F(EngineThreadTest, AJobThatIsLateEnds) {
  start();
  const auto recorder = std::make_shared<Recorder>();
  (void)thread_->enqueue(job(recorder, 16, 120, 0ms));
  ASSERT_TRUE(recorder->wait_until([](const Recorder& r) { return !r.failures_.empty(); }));
  EXPECT_EQ(recorder->failures_, std::vector{ErrorCode::kDeadlineExceeded});
  EXPECT_TRUE(recorder->done_.empty());
}

TEST_F(EngineThreadTest, StoppingEndsOpenJobsAndRefusesOthers) {
  start();
  const auto recorder = std::make_shared<Recorder>();
  (void)thread_->enqueue(job(recorder, 16, 120));
  thread_->stop(Deadline::after(0ms));
  EXPECT_TRUE(recorder->done_.size() == 16 ||
              recorder->failures_ == std::vector{ErrorCode::kUnavailable});
  EXPECT_EQ(thread_->enqueue(job(recorder, 1, 1)).outcome, EnqueueOutcome::kNotServing);
  EXPECT_EQ(thread_->snapshot().state, EngineState::kStopped);
  EXPECT_EQ(thread_->snapshot().open_samples, 0);
}

TEST_F(EngineThreadTest, StoppingWaitsForJobsUntilItsDeadline) {
  start();
  const auto recorder = std::make_shared<Recorder>();
  recorder->hold(true);
  (void)thread_->enqueue(job(recorder, 4, 60));
  ASSERT_TRUE(recorder->wait_until([](const Recorder& r) { return r.num_tokens_ > 0; }));
  {
    const BackgroundTask stopper(
        [this](const std::stop_token&) { thread_->stop(Deadline::after(60s)); });
    wait_for(EngineState::kStopping);
    EXPECT_EQ(thread_->enqueue(job(recorder, 1, 1)).outcome, EnqueueOutcome::kNotServing);
    recorder->hold(false);
  }
  EXPECT_EQ(recorder->done_.size(), 4u);
  EXPECT_TRUE(recorder->failures_.empty());
}

TEST_F(EngineThreadTest, AJobThatIsPausedStandsStillAndEndsWithTheSameTokens) {
  start();
  const auto whole = std::make_shared<Recorder>();
  (void)thread_->enqueue(job(whole, 4, 100));
  ASSERT_TRUE(whole->wait_until([](const Recorder& r) { return r.done_.size() == 4; }));
  const auto halted = std::make_shared<Recorder>();
  halted->hold(true);
  (void)thread_->enqueue(job(halted, 4, 100));
  ASSERT_TRUE(halted->wait_until([](const Recorder& r) { return r.num_tokens_ > 0; }));
  std::promise<void> paused;
  ASSERT_TRUE(thread_->set_paused(true, [&paused] { paused.set_value(); }));
  halted->hold(false);
  ASSERT_EQ(paused.get_future().wait_for(60s), std::future_status::ready);
  EXPECT_TRUE(thread_->snapshot().is_paused);
  EXPECT_EQ(thread_->snapshot().state, EngineState::kReady);
  const int64_t drawn = thread_->snapshot().stats.decoded_tokens;
  const auto late = std::make_shared<Recorder>();
  EXPECT_EQ(thread_->enqueue(job(late, 1, 5)).outcome, EnqueueOutcome::kAccepted);
  ASSERT_TRUE(set_paused(true)) << "twice is once; the thread has looked for arrivals since";
  EXPECT_EQ(thread_->snapshot().stats.decoded_tokens, drawn);
  EXPECT_TRUE(halted->done_.empty());
  ASSERT_TRUE(set_paused(false));
  EXPECT_FALSE(thread_->snapshot().is_paused);
  ASSERT_TRUE(halted->wait_until([](const Recorder& r) { return r.done_.size() == 4; }));
  ASSERT_TRUE(late->wait_until([](const Recorder& r) { return r.done_.size() == 1; }));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(halted->done_[i].tokens, whole->done_[i].tokens);
    EXPECT_EQ(halted->done_[i].log_probs, whole->done_[i].log_probs);
  }
}

TEST_F(EngineThreadTest, DeadlinesAndCancelsHoldWhileItIsPaused) {
  start();
  ASSERT_TRUE(set_paused(true));
  const auto late = std::make_shared<Recorder>();
  (void)thread_->enqueue(job(late, 2, 100, 10ms));
  ASSERT_TRUE(late->wait_until([](const Recorder& r) { return !r.failures_.empty(); }));
  EXPECT_EQ(late->failures_, std::vector{ErrorCode::kDeadlineExceeded});
  const auto cancelled = std::make_shared<Recorder>();
  thread_->cancel(thread_->enqueue(job(cancelled, 2, 100)).job);
  ASSERT_TRUE(cancelled->wait_until([](const Recorder& r) { return !r.failures_.empty(); }));
  EXPECT_EQ(cancelled->failures_, std::vector{ErrorCode::kCancelled});
  EXPECT_EQ(thread_->snapshot().stats.prompt_tokens, 0);
}

TEST_F(EngineThreadTest, AStepThatHangsIsSeenAndNotWaitedForWhereThatIsWanted) {
  start();
  const auto recorder = std::make_shared<Recorder>();
  recorder->hold(true);  // within a step
  (void)thread_->enqueue(job(recorder, 4, 60));
  ASSERT_TRUE(recorder->wait_until([](const Recorder& r) { return r.num_tokens_ > 0; }));
  EXPECT_FALSE(thread_->stop(Deadline::after(0ms), 50ms));
  EXPECT_GT(thread_->snapshot().step_s, 0.04);
  recorder->hold(false);
  EXPECT_TRUE(thread_->stop(Deadline::after(0ms)));
  EXPECT_EQ(thread_->snapshot().step_s, 0.0);
}

TEST_F(EngineThreadTest, StoppingGoesOnFromAPauseSoThatJobsEnd) {
  start();
  ASSERT_TRUE(set_paused(true));
  const auto recorder = std::make_shared<Recorder>();
  (void)thread_->enqueue(job(recorder, 3, 20));
  thread_->stop(Deadline::after(60s));
  EXPECT_EQ(recorder->done_.size(), 3u);
  EXPECT_TRUE(recorder->failures_.empty());
  EXPECT_FALSE(set_paused(true)) << "it serves no more";
}

TEST_F(EngineThreadTest, NothingIsServedWhileTheModelLoads) {
  std::promise<void> may_load;
  start(may_load.get_future().share());
  EXPECT_EQ(thread_->snapshot().state, EngineState::kLoading);
  EXPECT_FALSE(set_paused(true));
  EXPECT_EQ(thread_->enqueue(job(std::make_shared<Recorder>(), 1, 1)).outcome,
            EnqueueOutcome::kNotServing);
  may_load.set_value();
  wait_for(EngineState::kReady);
}

TEST_F(EngineThreadTest, AFailureReachesOpenJobsAndCheck) {
  for (uint16_t& bits : model_.weights.stored(model_.spec.table.lm_head).bf16) {
    bits = 0x7FC0;  // NaN
  }
  start();
  const auto recorder = std::make_shared<Recorder>();
  (void)thread_->enqueue(job(recorder, 2, 4));
  ASSERT_TRUE(recorder->wait_until([](const Recorder& r) { return !r.failures_.empty(); }));
  EXPECT_EQ(recorder->failures_, std::vector{ErrorCode::kInternal});
  EXPECT_EQ(thread_->snapshot().state, EngineState::kFailed);
  EXPECT_EQ(thread_->enqueue(job(recorder, 1, 1)).outcome, EnqueueOutcome::kNotServing);
  thread_->stop(Deadline::after(60s));
  EXPECT_THROW(thread_->check(), Error);
}

TEST_F(EngineThreadTest, AModelThatDoesNotLoadIsAFailure) {
  thread_.emplace([]() -> ServedEngine { throw Error(ErrorCode::kNotFound, "no model"); }, 4);
  thread_->start();
  wait_for(EngineState::kFailed);
  EXPECT_EQ(thread_->snapshot().failure, "no model");
  thread_->stop(Deadline::after(0ms));
  EXPECT_THROW(thread_->check(), Error);
}

}  // namespace
}  // namespace nibble
