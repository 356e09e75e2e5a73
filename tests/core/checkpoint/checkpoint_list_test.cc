#include "core/checkpoint/checkpoint_list.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "core/base/file.h"

namespace nibble {
namespace {

TEST(ListCheckpoints, GoesByNumberAndPassesOverWhatIsNone) {
  std::string name = ::testing::TempDir() + "/nibble_list_XXXXXX";
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  const std::filesystem::path folder = name;
  const std::vector<int64_t> steps = {0, 7, 999'999, 1'000'000, 10'000'001};
  for (const int64_t step : {steps[3], steps[0], steps[4], steps[1], steps[2]}) {
    const auto path = folder / checkpoint_name(step);
    std::filesystem::create_directories(path);
    write_file_atomically(path / "meta.json", "{}");
  }
  for (const char* other :
       {"step-000009", "step-000011.partial", "step-", "step-12x", "groups-7"}) {
    std::filesystem::create_directories(folder / other);
    if (std::string_view(other) == "step-000009") continue;  // damaged: without meta.json
    write_file_atomically(folder / other / "meta.json", "{}");
  }
  std::vector<int64_t> listed;
  for (const CheckpointEntry& entry : list_checkpoints(folder)) {
    EXPECT_EQ(entry.path, folder / checkpoint_name(entry.step));
    listed.push_back(entry.step);
  }
  EXPECT_EQ(listed, steps);
  EXPECT_TRUE(list_checkpoints(folder / "none").empty());
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace nibble
