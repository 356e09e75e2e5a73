#include "core/checkpoint/hf_directory.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";

class HfDirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_hf_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }
  fs::path directory_;
};

TEST_F(HfDirectoryTest, ReadsSingleAndShardedCheckpointsOfTransformers) {
  EXPECT_GT(HfDirectory(kModels / "dense_tied" / "bf16").tensors().size(), 10u);
  const HfDirectory sharded(kModels / "dense_untied" / "bf16");
  EXPECT_TRUE(sharded.contains("lm_head.weight"));
  EXPECT_EQ(sharded.tensor("lm_head.weight", DType::kBf16, {512, 128}).shape[0], 512);
}

TEST_F(HfDirectoryTest, WrongShapeNamesTensorAndBothShapes) {
  const HfDirectory model(kModels / "dense_tied" / "bf16");
  try {
    model.tensor("model.norm.weight", DType::kBf16, {64});
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("model.norm.weight"), std::string::npos);
    EXPECT_NE(text.find("[128]"), std::string::npos);
    EXPECT_NE(text.find("[64]"), std::string::npos);
  }
}

TEST_F(HfDirectoryTest, ShardedWriterRoundTripsWithATrueTotalSize) {
  const HfDirectory model(kModels / "dense_tied" / "bf16");
  HfWriter writer(directory_, model.tensors(), 100'000);
  int64_t total = 0;
  for (const TensorInfo& info : model.tensors()) {
    writer.write(info.name, model.tensor(info.name).bytes);
    total += info.num_bytes();
  }
  writer.finish();
  write_file_atomically(directory_ / "config.json", "{}");
  const HfDirectory again(directory_);
  ASSERT_EQ(again.tensors().size(), model.tensors().size());
  for (const TensorInfo& info : model.tensors()) {
    const auto a = model.tensor(info.name).bytes;
    const auto b = again.tensor(info.name).bytes;
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << info.name;
  }
  const Json index = read_json_file(directory_ / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], total);
}

TEST_F(HfDirectoryTest, AnotherWriterGoesOnFromTheWholeFilesOfTheFirst) {
  const HfDirectory model(kModels / "dense_tied" / "bf16");
  const auto infos = model.tensors();
  {
    HfWriter stopped(directory_, infos, 100'000);
    for (size_t i = 0; i < infos.size() / 2; ++i) {
      stopped.write(infos[i].name, model.tensor(infos[i].name).bytes);
    }
  }
  HfWriter writer(directory_, infos, 100'000);
  size_t skipped = 0;
  for (const TensorInfo& info : infos) {
    if (writer.is_written(info.name)) {
      ++skipped;
      continue;
    }
    writer.write(info.name, model.tensor(info.name).bytes);
  }
  writer.finish();
  EXPECT_GT(skipped, 0u);
  EXPECT_LE(skipped, infos.size() / 2);  // what was in an open file is written again
  write_file_atomically(directory_ / "config.json", "{}");
  const HfDirectory again(directory_);
  for (const TensorInfo& info : infos) {
    const auto a = model.tensor(info.name).bytes;
    const auto b = again.tensor(info.name).bytes;
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << info.name;
  }
  // Files of other tensors are not gone on from.
  auto others = infos;
  others.front().name += "x";
  EXPECT_FALSE(HfWriter(directory_, others, 100'000).is_written(others.front().name));
}

TEST_F(HfDirectoryTest, IndexThatLeavesTheDirectoryOrLiesIsRefused) {
  write_file_atomically(directory_ / "config.json", "{}");
  const auto refused = [&](const std::string& index) {
    write_file_atomically(directory_ / "model.safetensors.index.json", index);
    EXPECT_THROW(HfDirectory{directory_}, Error) << index;
  };
  refused(R"({"weight_map":{"a":"../x.safetensors"}})");
  refused(R"({"weight_map":{"a":"missing.safetensors"}})");
  refused(R"({"weight_map":[]})");
  refused("{}");
}

TEST_F(HfDirectoryTest, PickledWeightsAreNotRead) {
  write_file_atomically(directory_ / "config.json", "{}");
  write_file_atomically(directory_ / "pytorch_model.bin", "x");
  try {
    HfDirectory model(directory_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("safetensors"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
