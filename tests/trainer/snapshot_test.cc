// Checkpoints written from a copy of the state: the bytes of those written at once, one copy at a
// time.
#include <gtest/gtest.h>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/checkpoint/checkpoint_list.h"
#include "tests/trainer/oracle_records.h"
#include "tests/trainer/tiny_trainer.h"
#include "trainer/snapshot_slot.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxBytes = 1 << 28;

// A trainer of one rank and what it trains on.
struct Training {
  Training() { fill_log_probs(trainer, groups); }
  void step() { trainer.train({{groups}}, number++); }

  std::unique_ptr<ProcessGroup> group = solo_group("t");
  MeshGroups ranks{*group};
  Trainer trainer{make_config("moe_norm", Mode::kQat), ranks};
  std::vector<SampleGroup> groups = make_groups(3, 5);
  int64_t number = 0;
};

// Content by file name; meta.json says it all again but for the step, which is the caller's.
std::map<std::string, std::string> files_of(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    files[entry.path().filename().string()] = read_file(entry.path(), kMaxBytes);
  }
  return files;
}

void write(const CheckpointSnapshot& snapshot, const fs::path& directory) {
  snapshot.begin(directory);
  snapshot.write_rows(directory);
  snapshot.publish(directory);
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kFailedPrecondition);
    return error.what();
  }
  ADD_FAILURE() << "not refused";
  return "";
}

TEST(CheckpointSnapshot, IsTheStateOfItsTimeHoweverLateItIsWritten) {
  const TempFolder folder;
  Training training;
  training.step();
  const TrainProgress progress{1, 2, 0, {}, R"({"next_prompt": 4})", "run: {}\n"};
  training.trainer.save(folder.path / "at_once", progress);
  const auto snapshot = training.trainer.snapshot(progress);
  training.step();
  write(*snapshot, folder.path / "later");
  EXPECT_EQ(files_of(folder.path / "at_once"), files_of(folder.path / "later"));
  training.trainer.save(folder.path / "after", progress);
  EXPECT_NE(digest_checkpoint(folder.path / "after").state_sha256,
            digest_checkpoint(folder.path / "later").state_sha256);
}

TEST(CheckpointSnapshot, ReplacesACheckpointOfItsNameAndWhatAnEarlierAttemptLeft) {
  const TempFolder folder;
  const fs::path directory = folder.path / checkpoint_name(1);
  Training training;
  write(*training.trainer.snapshot({1, 1, 0}), directory);
  const auto before = files_of(directory);
  fs::create_directories(directory.string() + ".partial");
  write_file_atomically(directory.string() + ".partial/rank-007-of-008.safetensors", "torn");
  training.step();
  const auto snapshot = training.trainer.snapshot({1, 1, 0});
  snapshot->begin(directory);
  snapshot->write_rows(directory);
  EXPECT_EQ(files_of(directory), before) << "until it is published";
  snapshot->publish(directory);
  const auto after = files_of(directory);
  EXPECT_NE(after, before);
  EXPECT_EQ(after.size(), before.size());
  EXPECT_FALSE(fs::exists(directory.string() + ".partial"));
}

TEST(SnapshotSlot, HoldsOneCopyUntilItIsFinished) {
  const TempFolder folder;
  const fs::path first = folder.path / checkpoint_name(1),
                 second = folder.path / checkpoint_name(2);
  Training training;
  SnapshotSlot slot(0);
  const auto copy_at = [&](int64_t step) {
    return [&training, step] { return training.trainer.snapshot({step, 1, 0}); };
  };
  EXPECT_NE(refusal([&] { slot.write(1); }).find("no copy of its state of step 1"),
            std::string::npos);
  slot.take(first, 1, copy_at(1));
  EXPECT_NE(refusal([&] { slot.take(second, 2, copy_at(2)); }).find("step 1 is not finished"),
            std::string::npos);
  EXPECT_NE(refusal([&] { slot.finish(2, true); }).find("step 2"), std::string::npos);
  slot.write(1);
  slot.finish(1, false);
  EXPECT_TRUE(fs::is_empty(folder.path)) << "what was given up leaves nothing";
  slot.take(second, 2, copy_at(2));
  slot.write(2);
  slot.finish(2, true);
  EXPECT_EQ(CheckpointReader(second).progress().step, 2);
}

}  // namespace
}  // namespace nibble
