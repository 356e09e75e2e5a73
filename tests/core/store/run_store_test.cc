#include "core/store/run_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <array>
#include <cmath>
#include <limits>
#include <thread>

#include "core/base/error.h"
#include "core/base/file.h"
#include "tests/core/store/store_directory.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RunStoreTest : public StoreDirectory {
 protected:
  /// Runs SQL as a user would, beside RunStore; returns the first value as text.
  std::string sql(const std::string& text) const {
    sqlite3* handle = nullptr;
    EXPECT_EQ(sqlite3_open(path().c_str(), &handle), SQLITE_OK);
    std::string first;
    char* error = nullptr;
    const auto keep = [](void* out, int, char** values, char**) {
      *static_cast<std::string*>(out) = values[0] == nullptr ? "NULL" : values[0];
      return 0;
    };
    EXPECT_EQ(sqlite3_exec(handle, text.c_str(), keep, &first, &error), SQLITE_OK) << error;
    sqlite3_free(error);
    sqlite3_close(handle);
    return first;
  }
  template <typename Call>
  static ErrorCode code_of(Call&& call, const std::string& part = "") {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(part));
      return error.code();
    }
    ADD_FAILURE() << "nothing was thrown";
    return ErrorCode::kInternal;
  }
};

TEST_F(RunStoreTest, StepsKeepTheirTimesAndStatusAcrossReopening) {
  {
    RunStore store(path());
    store.begin_step(1, 1000);
    store.end_step(1, StepStatus::kDone, 2000);
    store.begin_step(2, 2500);
  }
  const RunStore store(path());
  const auto steps = store.steps();
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].status, StepStatus::kDone);
  EXPECT_EQ(steps[0].ended_at_ms, 2000);
  EXPECT_EQ(steps[1].status, StepStatus::kRunning);
  EXPECT_FALSE(steps[1].ended_at_ms.has_value());
  EXPECT_EQ(store.last_step()->step, 2);
  EXPECT_EQ(store.steps(2).size(), 1u);
}

TEST_F(RunStoreTest, AStepThatNeverBeganCannotEnd) {
  RunStore store(path());
  EXPECT_EQ(code_of([&] { store.end_step(9, StepStatus::kDone, 1); }, "step 9"),
            ErrorCode::kFailedPrecondition);
  EXPECT_FALSE(store.last_step().has_value());
}

TEST_F(RunStoreTest, MetricsComeBackAsSeriesAndReplaceOnRepeat) {
  RunStore store(path());
  for (int64_t step = 1; step <= 3; ++step) {
    store.record_metrics(step, std::array{Metric{"loss", 1.0 / static_cast<double>(step)},
                                          Metric{"kl", std::nan("")}});
  }
  store.record_metrics(2, std::array{Metric{"loss", std::numeric_limits<double>::infinity()}});
  EXPECT_THAT(store.metric_names(), ElementsAre("kl", "loss"));
  const auto loss = store.metric_series("loss", 2);
  ASSERT_EQ(loss.size(), 2u);
  EXPECT_EQ(loss[0].step, 2);
  EXPECT_TRUE(std::isinf(loss[0].value));
  EXPECT_EQ(loss[1].value, 1.0 / 3);
  EXPECT_TRUE(std::isnan(store.metric_series("kl")[0].value));
  EXPECT_TRUE(store.metric_series("none").empty());
}

TEST_F(RunStoreTest, SamplesKeepTheirTextsAndFigures) {
  RunStore store(path());
  SampleRecord sample{.step = 1, .prompt_id = "p'; DROP TABLE samples; --", .sample_index = 1};
  sample.reward = 0.5;
  sample.length = 12;
  sample.finish_reason = "stop";
  sample.weight_version = 4;
  sample.prompt_text = "2 + 2?";
  sample.response_text = std::string("4\0é", 4);
  store.record_samples({&sample, 1});
  const auto samples = store.samples(1, 10);
  ASSERT_EQ(samples.size(), 1u);
  EXPECT_EQ(samples[0].prompt_id, sample.prompt_id);
  EXPECT_EQ(samples[0].response_text, sample.response_text);
  EXPECT_EQ(samples[0].reward, 0.5);
  EXPECT_EQ(samples[0].weight_version, 4);
  EXPECT_EQ(samples[0].finish_reason, "stop");
  EXPECT_TRUE(store.samples(2, 10).empty());
}

TEST_F(RunStoreTest, LongTextsAreCutBetweenCharacters) {
  RunStore store(path());
  SampleRecord sample{.step = 1, .prompt_id = "p"};
  for (int i = 0; i < 10'000; ++i) sample.response_text += "€";  // 3 bytes; the cap is no multiple
  store.record_samples({&sample, 1});
  const std::string text = store.samples(1, 1)[0].response_text;
  EXPECT_EQ(static_cast<int64_t>(text.size()), kMaxSampleTextBytes / 3 * 3);
  EXPECT_TRUE(text.ends_with("€"));
}

TEST_F(RunStoreTest, RetentionDropsOldTextsAndKeepsFigures) {
  RunStore store(path());
  std::vector<SampleRecord> samples;
  for (int64_t step = 1; step <= 4; ++step) {
    samples.push_back({.step = step, .prompt_id = "p", .reward = 1});
    samples.back().response_text = "text";
  }
  store.record_samples(samples);
  EXPECT_EQ(store.drop_sample_texts(3), 2);
  EXPECT_EQ(store.drop_sample_texts(3), 0);
  EXPECT_EQ(store.samples(2, 1)[0].response_text, "");
  EXPECT_EQ(store.samples(2, 1)[0].reward, 1.0);
  EXPECT_EQ(store.samples(3, 1)[0].response_text, "text");
}

TEST_F(RunStoreTest, RewindForgetsLaterStepsButNoVersion) {
  RunStore store(path());
  for (int64_t step = 1; step <= 3; ++step) {
    store.begin_step(step, step);
    store.record_metrics(step, std::array{Metric{"loss", 1}});
    const SampleRecord sample{.step = step, .prompt_id = "p"};
    store.record_samples({&sample, 1});
    store.record_version({.version = step, .step = step, .digest = "d"});
  }
  store.rewind_to(1);
  EXPECT_EQ(store.last_step()->step, 1);
  EXPECT_EQ(store.metric_series("loss").size(), 1u);
  EXPECT_TRUE(store.samples(2, 1).empty());
  EXPECT_EQ(store.versions().size(), 3u);
}

TEST_F(RunStoreTest, TheCommitLogKeepsOrderAndMembers) {
  RunStore store(path());
  VersionRecord record{.version = 1, .epoch = 7, .step = 3, .digest = "abcd", .created_at_ms = 5};
  record.members = {"rollout/0", "rollout/\"1\""};
  store.record_version(record);
  EXPECT_EQ(store.undecided_versions().size(), 1u);
  EXPECT_FALSE(store.last_committed_version().has_value());
  record.decision = Decision::kCommitted;
  store.record_version(record);
  store.record_version({.version = 2, .decision = Decision::kAborted});
  const auto log = store.versions();
  ASSERT_EQ(log.size(), 3u);
  EXPECT_EQ(log[0].decision, Decision::kPrepared);
  EXPECT_EQ(log[1].decision, Decision::kCommitted);
  EXPECT_EQ(log[1].members, record.members);
  EXPECT_EQ(log[1].epoch, 7);
  EXPECT_EQ(log[1].digest, "abcd");
  EXPECT_EQ(log[2].decision, Decision::kAborted);
  EXPECT_EQ(store.last_committed_version()->version, 1);
  EXPECT_TRUE(store.undecided_versions().empty());
  EXPECT_EQ(store.versions(2).size(), 1u);
}

TEST_F(RunStoreTest, TheCommitLogRefusesWhatContradictsIt) {
  RunStore store(path());
  const auto record = [&](int64_t version, Decision decision) {
    return [&store, version, decision] {
      store.record_version({.version = version, .decision = decision});
    };
  };
  EXPECT_EQ(code_of(record(5, Decision::kCommitted), "not prepared"),
            ErrorCode::kFailedPrecondition);
  record(5, Decision::kPrepared)();
  EXPECT_EQ(code_of(record(5, Decision::kPrepared)), ErrorCode::kFailedPrecondition);
  EXPECT_EQ(code_of(record(4, Decision::kPrepared), "newest one, 5"),
            ErrorCode::kFailedPrecondition);
  record(5, Decision::kAborted)();
  EXPECT_EQ(code_of(record(5, Decision::kCommitted), "already decided"),
            ErrorCode::kFailedPrecondition);
  EXPECT_EQ(store.versions().size(), 2u);
}

TEST_F(RunStoreTest, EventsComeNewestFirstAboveASeverity) {
  RunStore store(path());
  store.record_event({1, Severity::kInfo, "coordinator", "started", "a"});
  store.record_event({2, Severity::kError, "rollout/1", "worker_lost", "b"});
  store.record_event({3, Severity::kWarning, "trainer/0", "slow", "c"});
  const auto events = store.events(10, Severity::kWarning);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].kind, "slow");
  EXPECT_EQ(events[1].source, "rollout/1");
  EXPECT_EQ(events[1].severity, Severity::kError);
  EXPECT_EQ(store.events(1).size(), 1u);
}

TEST_F(RunStoreTest, MetaKeepsTheLastValue) {
  RunStore store(path());
  EXPECT_FALSE(store.meta("name").has_value());
  store.set_meta("name", "a");
  store.set_meta("name", "");
  EXPECT_EQ(store.meta("name"), "");
}

TEST_F(RunStoreTest, AReaderSeesWhatIsCommittedWhileTheWriterIsOpen) {
  RunStore writer(path());
  writer.begin_step(1, 1);
  RunStore reader(path(), RunStore::Access::kReadOnly);
  EXPECT_EQ(reader.steps().size(), 1u);
  writer.begin_step(2, 2);
  EXPECT_EQ(reader.steps().size(), 2u);
  EXPECT_EQ(sql("SELECT count(*) FROM steps"), "2");
  EXPECT_EQ(code_of([&] { reader.set_meta("a", "b"); }), ErrorCode::kInvalidArgument);
}

TEST_F(RunStoreTest, ThreadsMayShareOneStore) {
  RunStore store(path());
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&store, thread] {
      for (int64_t step = 0; step < 20; ++step) {
        store.record_metrics(step, std::array{Metric{std::to_string(thread), 1}});
        store.metric_names();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int thread = 0; thread < 4; ++thread) {
    EXPECT_EQ(store.metric_series(std::to_string(thread)).size(), 20u);
  }
}

TEST_F(RunStoreTest, ANewerSchemaIsRefused) {
  { const RunStore store(path()); }
  sql("PRAGMA user_version = 99");
  EXPECT_EQ(code_of([&] { RunStore store(path()); }, "has schema 99"),
            ErrorCode::kFailedPrecondition);
  EXPECT_EQ(code_of([&] { RunStore store(path(), RunStore::Access::kReadOnly); }, "run.db"),
            ErrorCode::kFailedPrecondition);
}

TEST_F(RunStoreTest, AnotherProgramsFileIsRefusedAndUntouched) {
  sql("CREATE TABLE theirs (a)");
  EXPECT_EQ(code_of([&] { RunStore store(path()); }, "another program"),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(sql("SELECT count(*) FROM sqlite_schema"), "1");
}

TEST_F(RunStoreTest, ADamagedFileIsDataLossByName) {
  write_file_atomically(path(), std::string(10'000, 'x'));
  EXPECT_EQ(code_of([&] { RunStore store(path()); }, "run.db"), ErrorCode::kDataLoss);
}

TEST_F(RunStoreTest, ADamagedPageIsFoundOnOpening) {
  {
    RunStore store(path());
    for (int64_t step = 0; step < 2000; ++step) {
      store.record_metrics(step / 100, std::array{Metric{std::to_string(step), 1}});
    }
  }
  std::string bytes = read_file(path(), 64 << 20);
  ASSERT_GT(bytes.size(), 40'000u);
  // Every page but the first ones, so that pages in use are hit whatever the layout.
  for (size_t at = 24'576; at < bytes.size(); ++at) bytes[at] = '\x5a';
  write_file_atomically(path(), bytes);
  EXPECT_EQ(code_of([&] { RunStore store(path()); }, "run.db"), ErrorCode::kDataLoss);
}

TEST_F(RunStoreTest, AMissingFolderOrFileIsNamed) {
  EXPECT_EQ(code_of([&] { RunStore store(directory_ / "none" / "run.db"); }, "none/run.db"),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { RunStore store(path(), RunStore::Access::kReadOnly); }, "run.db"),
            ErrorCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(path()));
}

}  // namespace
}  // namespace nibble
