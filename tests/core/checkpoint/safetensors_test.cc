#include "core/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "core/base/error.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_st_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }

  // Writes a file with the given header text and `data_bytes` zero bytes.
  fs::path raw(const std::string& header, size_t data_bytes, int64_t header_bytes = -1) {
    const fs::path path = directory_ / "raw.safetensors";
    std::ofstream out(path, std::ios::binary);
    const uint64_t length = header_bytes < 0 ? header.size() : static_cast<uint64_t>(header_bytes);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << header << std::string(data_bytes, '\0');
    return path;
  }
  void expect_refused(const fs::path& path, const std::string& fragment) {
    try {
      const SafetensorsFile file(path);
      FAIL() << "accepted; wanted: " << fragment;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("raw.safetensors"), std::string::npos);
    }
  }
  fs::path directory_;
};

TEST_F(SafetensorsTest, WrittenTensorsReadBackByteForByte) {
  const std::vector<float> a = {1.5f, -2.0f};
  const std::vector<uint8_t> b = {1, 2, 3};
  const fs::path path = directory_ / "model.safetensors";
  SafetensorsWriter writer(
      path, {{"b", DType::kU8, {3}}, {"a", DType::kF32, {2, 1}}, {"e", DType::kF32, {0}}},
      {{"format", "pt"}});
  writer.write("b", std::as_bytes(std::span(b)));
  writer.write_part("a", std::as_bytes(std::span(a)).subspan(0, 4));
  EXPECT_FALSE(fs::exists(path)) << "nothing half-written is visible";
  writer.write_part("a", std::as_bytes(std::span(a)).subspan(4));
  writer.finish();
  const SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(std::memcmp(file.tensor("a").bytes.data(), a.data(), 8), 0);
  EXPECT_EQ(file.tensor("b").bytes.size(), 3u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_THROW(file.tensor("c"), Error);
}

TEST_F(SafetensorsTest, EveryRuleOfTheFormatIsEnforced) {
  expect_refused(raw("{}", 0, 1000), "truncated");
  expect_refused(raw("[]", 0), "must start with");
  expect_refused(raw("{", 0), "JSON");
  const std::string f32 = R"("dtype":"F32","shape":[2],"data_offsets":)";
  expect_refused(raw("{\"a\":{" + f32 + "[0,8]}}", 4), "outside the file");
  expect_refused(raw("{\"a\":{" + f32 + "[0,4]}}", 4), "do not match");
  expect_refused(raw("{\"a\":{" + f32 + "[8,0]}}", 8), "outside the file");
  expect_refused(raw("{\"a\":{" + f32 + "[4,12]}}", 12), "hole");
  expect_refused(raw("{\"a\":{" + f32 + "[0,8]},\"b\":{" + f32 + "[4,12]}}", 12), "overlap");
  expect_refused(raw("{\"a\":{" + f32 + "[0,8]}}", 9), "belong to none");
  expect_refused(raw("{\"a\":{" + f32 + "[0,8]},\"a\":{" + f32 + "[8,16]}}", 16), "duplicate");
  expect_refused(raw(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "integer");
  expect_refused(
      raw(R"({"a":{"dtype":"F32","shape":[9999999999,9999999999],"data_offsets":[0,8]}})", 8),
      "impossible shape");
  expect_refused(raw(R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})", 2),
                 "not supported");
  expect_refused(raw(R"({"__metadata__":{"a":1}})", 0), "not a string");
}

TEST_F(SafetensorsTest, EveryTruncationOfAValidFileIsRefused) {
  const fs::path path = directory_ / "ok.safetensors";
  SafetensorsWriter writer(path, {{"a", DType::kF32, {4}}}, {});
  const std::vector<float> a(4, 1.0f);
  writer.write("a", std::as_bytes(std::span(a)));
  writer.finish();
  const std::string whole = read_file(path, 4096);
  for (size_t size = 0; size < whole.size(); ++size) {
    write_file_atomically(directory_ / "raw.safetensors", whole.substr(0, size));
    EXPECT_THROW(SafetensorsFile(directory_ / "raw.safetensors"), Error) << size;
  }
}

}  // namespace
}  // namespace nibble
