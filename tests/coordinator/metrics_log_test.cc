#include "coordinator/metrics_log.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "core/base/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

TEST(MetricsLog, ResumeKeepsRowsUpToTheCheckpointAndDropsATornLine) {
  std::string name = (fs::temp_directory_path() / "nibble_ml_XXXXXX").string();
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  const fs::path root = name;
  RunStore store(root / "run.db");
  const auto row = [](int64_t step, double reward) {
    MetricsRow r(step);
    r.set("reward_mean", reward);
    r.set("count", 3.0);
    return r;
  };
  {
    MetricsLog log(root / "m.jsonl", store, -1);
    for (int step = 1; step <= 3; ++step) log.write(row(step, 0.5 * step));
  }
  const std::string three = read_file(root / "m.jsonl", 10'000);
  EXPECT_EQ(three.substr(0, three.find('\n')), R"({"step":1,"reward_mean":0.5,"count":3})");
  write_file_atomically(root / "m.jsonl", three + R"({"step":4,"rew)");
  {
    MetricsLog log(root / "m.jsonl", store, 2);
    log.write(row(3, 9.0));
  }
  const std::string resumed = read_file(root / "m.jsonl", 10'000);
  EXPECT_EQ(std::count(resumed.begin(), resumed.end(), '\n'), 3);
  EXPECT_NE(resumed.find(R"({"step":3,"reward_mean":9,"count":3})"), std::string::npos);
  EXPECT_EQ(store.metric_series("reward_mean").size(), 3u);
  fs::remove_all(root);
}

}  // namespace
}  // namespace nibble
