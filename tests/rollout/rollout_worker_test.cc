// Weights that are swapped while a rollout worker generates.
#include "rollout/rollout_worker.h"

#include <gtest/gtest.h>

#include <future>
#include <set>

#include "core/base/error.h"
#include "core/checkpoint/hf_directory.h"
#include "tests/core/models/test_root.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

class RolloutWorkerTest : public ::testing::Test {
 protected:
  static constexpr int64_t kTokens = 400;  // long enough to be met while it runs

  RolloutWorkerOptions options(KvPolicy policy) const {
    RolloutWorkerOptions options;
    options.model = model_;
    options.rollout.kv_policy = policy;
    options.rollout.max_positions = 512;
    options.rollout.kv_tokens = 8192;
    options.plan = weights_->plan();
    options.reward_command = {std::string(NIBBLE_BINARY_DIR) + "/bin/nibble-reward", "last_number"};
    return options;
  }
  RolloutJob job() const {
    RolloutJob job;
    job.weight_version = 1;
    for (uint64_t p = 0; p < 4; ++p) job.prompts.push_back({p, Json("1 2 3"), Json("3")});
    job.samples_per_prompt = 4;
    job.max_new_tokens = kTokens;
    return job;
  }
  // Generates, and calls `between` after a step: what is let in next comes one step later at least.
  RolloutOutcome generate(TaskThread& thread, RolloutWorker& worker,
                          const std::function<void()>& between) {
    std::promise<void> begun;
    auto outcome = std::async(std::launch::async, [&] {
      return thread.run([&] {
        begun.set_value();
        return worker.generate(job(), Deadline::after(60s), thread);
      });
    });
    begun.get_future().wait();
    thread.run_within([] {});
    between();
    return outcome.get();
  }

  // Of all samples, none of which was dropped.
  static std::set<int64_t> versions_of(const RolloutOutcome& outcome) {
    std::set<int64_t> versions;
    for (const SampleReport& report : outcome.samples) {
      EXPECT_FALSE(report.error);
      EXPECT_TRUE(std::is_sorted(report.sample.versions.begin(), report.sample.versions.end()));
      versions.insert(report.sample.versions.begin(), report.sample.versions.end());
    }
    return versions;
  }

  const std::filesystem::path model_ = test_root() / "tests/oracles/models/dense_untied/bf16";
  const HfDirectory directory_{model_};
  const ModelSpec spec_ = make_model_spec(parse_model_config(directory_.config(), model_.string()));
  const std::shared_ptr<const ResidentWeights> weights_ = load_weights(directory_, spec_.table);
};

TEST_F(RolloutWorkerTest, SwapsBetweenTwoStepsOfAJobThatRuns) {
  for (const auto policy : {KvPolicy::kKeep, KvPolicy::kRecompute}) {
    TaskThread thread;
    std::unique_ptr<RolloutWorker> worker;
    thread.run([&] {
      worker = std::make_unique<RolloutWorker>(options(policy));
      worker->set_weights(weights_, 1);
    });
    const RolloutOutcome outcome = generate(
        thread, *worker, [&] { thread.run_within([&] { worker->set_weights(weights_, 2); }); });
    EXPECT_EQ(versions_of(outcome), (std::set<int64_t>{1, 2})) << "the swap waited for the job";
    thread.run([&] { worker.reset(); });
  }
}

TEST_F(RolloutWorkerTest, ADraftHeadThatIsTrainedMeanwhileChangesNoSample) {
  const auto outcome_with = [&](const std::string& head, bool trains) {
    TaskThread thread;
    return thread.run([&] {
      RolloutWorkerOptions own = options(KvPolicy::kKeep);
      own.rollout.draft_head = head;
      own.rollout.train_draft_head = trains;
      own.rollout.max_draft_tokens = 3;
      RolloutWorker worker(own);
      worker.set_weights(weights_, 1);
      return worker.generate(job(), Deadline::after(60s), thread);
    });
  };
  const RolloutOutcome want = outcome_with("", false);
  for (const bool trains : {false, true}) {
    const RolloutOutcome got = outcome_with("random", trains);
    EXPECT_GT(got.engine.draft_ms, 0.0);
    ASSERT_EQ(got.samples.size(), want.samples.size());
    for (size_t i = 0; i < got.samples.size(); ++i) {
      EXPECT_EQ(got.samples[i].sample.response, want.samples[i].sample.response);
      EXPECT_EQ(got.samples[i].sample.log_probs, want.samples[i].sample.log_probs);
    }
  }
}

TEST_F(RolloutWorkerTest, ADraftModelChangesNoSampleAndOneThatDoesNotFitIsNamed) {
  const auto outcome_with = [&](const std::filesystem::path& draft) {
    TaskThread thread;
    return thread.run([&] {
      RolloutWorkerOptions own = options(KvPolicy::kKeep);
      own.rollout.draft_model = draft;
      own.rollout.max_draft_tokens = 4;
      RolloutWorker worker(own);
      worker.set_weights(weights_, 1);
      return worker.generate(job(), Deadline::after(60s), thread);
    });
  };
  const RolloutOutcome want = outcome_with({});
  const RolloutOutcome got = outcome_with(model_.parent_path() / "int4_sym7");
  EXPECT_GT(got.engine.draft_ms, 0.0);
  ASSERT_EQ(got.samples.size(), want.samples.size());
  for (size_t i = 0; i < got.samples.size(); ++i) {
    EXPECT_EQ(got.samples[i].sample.response, want.samples[i].sample.response);
    EXPECT_EQ(got.samples[i].sample.log_probs, want.samples[i].sample.log_probs);
  }
  try {
    outcome_with(model_.parent_path() / "missing");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rollout.draft_model"), std::string::npos);
  }
}

TEST_F(RolloutWorkerTest, AbortPolicyDropsTheSamplesThatRan) {
  TaskThread thread;
  std::unique_ptr<RolloutWorker> worker;
  thread.run([&] {
    worker = std::make_unique<RolloutWorker>(options(KvPolicy::kAbort));
    worker->set_weights(weights_, 1);
  });
  const RolloutOutcome outcome = generate(
      thread, *worker, [&] { thread.run_within([&] { worker->set_weights(weights_, 2); }); });
  int num_aborted = 0;
  for (const SampleReport& report : outcome.samples) {
    const bool is_aborted = report.sample.finish_reason == "aborted";
    EXPECT_EQ(report.error.has_value(), is_aborted);
    num_aborted += is_aborted ? 1 : 0;
    for (const int64_t version : report.sample.versions) {
      EXPECT_EQ(version, report.sample.versions[0]) << "a sample of two versions";
    }
  }
  EXPECT_GT(num_aborted, 0);
  thread.run([&] { worker.reset(); });
}

TEST_F(RolloutWorkerTest, AJobWaitsWhileItsWeightsAreReplacedInPlace) {
  TaskThread thread;
  std::unique_ptr<RolloutWorker> worker;
  thread.run([&] {
    worker = std::make_unique<RolloutWorker>(options(KvPolicy::kKeep));
    worker->set_weights(weights_, 1);
  });
  double pause_ms = 0.0;
  const RolloutOutcome outcome = generate(thread, *worker, [&] {
    thread.run_within([&] { worker->release_weights(); });
    EXPECT_EQ(weights_.use_count(), 1) << "the engine holds them still";
    std::this_thread::sleep_for(20ms);
    pause_ms = thread.run_within([&] { return worker->set_weights(weights_, 2); });
  });
  EXPECT_GE(pause_ms, 20.0);
  EXPECT_EQ(versions_of(outcome), (std::set<int64_t>{1, 2}));
  // With nothing served a job is refused; the same version again is no swap.
  thread.run([&] {
    EXPECT_EQ(worker->set_weights(weights_, 2), 0.0);
    worker->release_weights();
    EXPECT_THROW(worker->generate(job(), Deadline::after(1s), thread), Error);
    worker.reset();
  });
}

}  // namespace
}  // namespace nibble
