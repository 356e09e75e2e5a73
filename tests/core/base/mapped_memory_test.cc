#include "core/base/mapped_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <numeric>
#include <string>

#include "core/base/array.h"
#include "core/base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class MappedMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_mapped_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
    use_mapped_memory(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }
  int num_mappings() const {
    std::ifstream maps("/proc/self/maps");
    int count = 0;
    for (std::string line; std::getline(maps, line);) {
      count += line.find(directory_.filename()) != std::string::npos ? 1 : 0;
    }
    return count;
  }
  fs::path directory_;
};

TEST_F(MappedMemoryTest, ArraysShareMappingsOfFilesThatHaveNoName) {
  std::vector<Array<float>> arrays;
  for (size_t i = 0; i < 2000; ++i) {
    arrays.emplace_back(1 + i % 1500, DeviceKind::kMappedFile);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(arrays.back().data()) % 64, 0u);
    std::iota(arrays.back().begin(), arrays.back().end(), static_cast<float>(i));
  }
  EXPECT_TRUE(fs::is_empty(directory_));
  EXPECT_GE(num_mappings(), 2);
  EXPECT_LE(num_mappings(), 6);
  for (size_t i = 0; i < arrays.size(); ++i) {
    EXPECT_EQ(arrays[i][arrays[i].size() - 1],
              static_cast<float>(i) + static_cast<float>(arrays[i].size() - 1));
  }
  EXPECT_EQ(arrays[3].to(DeviceKind::kCpu), arrays[3]);
  arrays.clear();
  EXPECT_EQ(num_mappings(), 0);
}

TEST_F(MappedMemoryTest, NewMemoryIsZeroAndALargeArrayHasItsOwnMapping) {
  const Array<float> large(size_t{3} << 20, DeviceKind::kMappedFile);
  EXPECT_TRUE(std::all_of(large.begin(), large.end(), [](float x) { return x == 0.0f; }));
  EXPECT_EQ(num_mappings(), 1);
}

TEST_F(MappedMemoryTest, WhatTheDiskHasNoRoomForIsAnErrorThatNamesTheDirectory) {
  try {
    Array<std::byte>::uninitialized(size_t{1} << 56, DeviceKind::kMappedFile);
    FAIL() << "the disk is large";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
    EXPECT_THAT(error.what(), ::testing::HasSubstr(directory_.string()));
  }
  EXPECT_EQ(num_mappings(), 0);
  EXPECT_THROW(use_mapped_memory(directory_ / "none"), Error);
}

}  // namespace
}  // namespace nibble
