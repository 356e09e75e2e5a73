// Weights that are swapped while a rollout worker generates.
#include "rollout/rollout_worker.h"

#include <gtest/gtest.h>

#include <future>
#include <iterator>
#include <map>
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
  // Collects on the worker's thread until `count` groups are whole; by prompt, then sample.
  static std::vector<SampleReport> collect(RolloutWorker& worker, TaskThread& thread, size_t count,
                                           EngineTotals* totals = nullptr) {
    const Deadline deadline = Deadline::after(60s);
    std::map<uint64_t, std::vector<SampleReport>> groups;
    while (groups.size() < count && !deadline.expired()) {
      RolloutOutcome outcome = worker.finish(worker.advance(Deadline::after(1s), thread));
      if (totals != nullptr) totals->draft_ms += outcome.engine.draft_ms;
      for (GroupReport& group : outcome.groups) {
        groups[group.prompt_id] = std::move(group.samples);
      }
    }
    EXPECT_EQ(groups.size(), count);
    std::vector<SampleReport> samples;
    for (auto& [id, group] : groups)
      std::move(group.begin(), group.end(), std::back_inserter(samples));
    return samples;
  }
  // Generates, and calls `between` after a step: what is let in next comes one step later at least.
  std::vector<SampleReport> generate(TaskThread& thread, RolloutWorker& worker,
                                     const std::function<void()>& between) {
    std::promise<void> begun;
    auto samples = std::async(std::launch::async, [&] {
      return thread.run([&] {
        worker.submit(job());
        begun.set_value();
        return collect(worker, thread, job().prompts.size());
      });
    });
    begun.get_future().wait();
    thread.run_within([] {});
    between();
    return samples.get();
  }

  // Of all samples, none of which was dropped.
  static std::set<int64_t> versions_of(const std::vector<SampleReport>& samples) {
    std::set<int64_t> versions;
    for (const SampleReport& report : samples) {
      EXPECT_FALSE(report.error);
      EXPECT_TRUE(std::is_sorted(report.sample.versions.begin(), report.sample.versions.end()));
      versions.insert(report.sample.versions.begin(), report.sample.versions.end());
    }
    return versions;
  }

  struct Drawn {
    std::vector<SampleReport> samples;
    EngineTotals engine;
  };

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
    const std::vector<SampleReport> outcome = generate(
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
      Drawn drawn;
      worker.submit(job());
      drawn.samples = collect(worker, thread, job().prompts.size(), &drawn.engine);
      return drawn;
    });
  };
  const Drawn want = outcome_with("", false);
  for (const bool trains : {false, true}) {
    const Drawn got = outcome_with("random", trains);
    EXPECT_GT(got.engine.draft_ms, 0.0);
    ASSERT_EQ(got.samples.size(), want.samples.size());
    for (size_t i = 0; i < got.samples.size(); ++i) {
      EXPECT_EQ(got.samples[i].sample.response, want.samples[i].sample.response);
      EXPECT_EQ(got.samples[i].sample.log_probs, want.samples[i].sample.log_probs);
    }
  }
}

TEST_F(RolloutWorkerTest, ADraftModelComesWithTheWeightsAndChangesNoSample) {
  // Of its directory, the worker reads config.json alone.
  const std::filesystem::path alone = std::filesystem::path(::testing::TempDir()) / "draft_config";
  std::filesystem::create_directories(alone);
  std::filesystem::copy_file(model_ / "config.json", alone / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  const HfDirectory int4(model_.parent_path() / "int4_sym7");
  const DraftPart draft{alone, spec_.config, checkpoint_plan(int4, spec_.table)};
  const JointParameters joint = join_parameters(spec_.table, weights_->plan(), &draft);
  const auto both = std::make_shared<ResidentWeights>(joint.table, joint.plan);
  const auto guessing = load_weights(int4, spec_.table);
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    both->stored(p) = weights_->stored(p);
    both->stored(spec_.table.size() + p) = guessing->stored(p);
  }
  const auto outcome_with = [&](const std::optional<DraftPart>& part) {
    TaskThread thread;
    return thread.run([&] {
      RolloutWorkerOptions own = options(KvPolicy::kKeep);
      own.draft = part;
      own.rollout.max_draft_tokens = 4;
      RolloutWorker worker(own);
      worker.set_weights(both, 1);
      worker.release_weights();  // as before weights are overwritten in place
      EXPECT_EQ(both.use_count(), 1);
      worker.set_weights(both, 1);
      Drawn drawn;
      worker.submit(job());
      drawn.samples = collect(worker, thread, job().prompts.size(), &drawn.engine);
      return drawn;
    });
  };
  const Drawn want = outcome_with({});
  const Drawn got = outcome_with(draft);
  EXPECT_GT(got.engine.draft_ms, 0.0);
  ASSERT_EQ(got.samples.size(), want.samples.size());
  for (size_t i = 0; i < got.samples.size(); ++i) {
    EXPECT_EQ(got.samples[i].sample.response, want.samples[i].sample.response);
    EXPECT_EQ(got.samples[i].sample.log_probs, want.samples[i].sample.log_probs);
  }
  try {
    outcome_with(DraftPart{model_.parent_path() / "missing", spec_.config, draft.plan});
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
  const std::vector<SampleReport> outcome = generate(
      thread, *worker, [&] { thread.run_within([&] { worker->set_weights(weights_, 2); }); });
  int num_aborted = 0;
  for (const SampleReport& report : outcome) {
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
  const std::vector<SampleReport> outcome = generate(thread, *worker, [&] {
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
    EXPECT_THROW(worker->submit(job()), Error);
    worker.reset();
  });
}

TEST_F(RolloutWorkerTest, WhatIsNotWaitedForGoesOnOrEndsAndAnEvaluationGoesFirst) {
  TaskThread thread;
  std::unique_ptr<RolloutWorker> worker;
  thread.run([&] {
    RolloutWorkerOptions own = options(KvPolicy::kKeep);
    own.rollout.max_running = 4;  // one group at a time
    worker = std::make_unique<RolloutWorker>(own);
    worker->set_weights(weights_, 1);
    worker->submit(job());
    // Whole samples do not depend on when they were computed, nor on what was between.
    const std::vector<SampleReport> first = collect(*worker, thread, 1);
    EXPECT_EQ(first[0].prompt_id, 0u);
    RolloutJob evaluation = job();
    evaluation.evaluation = true;
    evaluation.prompts.resize(1);  // with the id of a group of training
    worker->submit(evaluation);
    worker->release(std::vector<uint64_t>{1});
    const std::vector<SampleReport> rest = collect(*worker, thread, 3);
    std::set<uint64_t> ids;
    for (const SampleReport& report : rest) ids.insert(report.prompt_id);
    EXPECT_EQ(ids, (std::set<uint64_t>{0, 2, 3})) << "released, or not, the wrong way round";
    // Kept: those of training that were not released.
    const std::vector<uint64_t> kept = {0, 2, 3};
    EXPECT_EQ(worker->kept().fetch(kept).size(), 3u);
    EXPECT_THROW(worker->kept().fetch(std::vector<uint64_t>{1}), Error);
    worker->release(kept);
    EXPECT_THROW(worker->kept().fetch(kept), Error);
    // A prompt that is under way begins anew.
    worker->submit(job());
    worker->submit(job());
    EXPECT_EQ(collect(*worker, thread, 4)[0].sample.response, first[0].sample.response);
    EXPECT_TRUE(worker->advance(Deadline::after(1ms), thread).groups.empty());
    RolloutJob twice = job();
    twice.prompts.push_back(twice.prompts[0]);
    EXPECT_THROW(worker->submit(twice), Error);
    worker.reset();
  });
}

}  // namespace
}  // namespace nibble
