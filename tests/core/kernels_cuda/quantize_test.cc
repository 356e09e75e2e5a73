// CUDA quantizer against the CPU's, byte for byte.
#include "core/kernels_cuda/quantize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/cuda/device_buffer.h"
#include "core/kernels/quantize.h"
#include "core/quant/bf16.h"
#include "tests/core/kernels/random_data.h"

namespace nibble::kernels {
namespace {

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

class QuantizeCuda : public ::testing::TestWithParam<quant::GroupShape> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_P(QuantizeCuda, PacksTheCpusBytesAndUnpacksThemExactly) {
  const quant::GroupShape shape = GetParam();
  auto master = random_floats(shape.rows * shape.cols, 3, 0.05f);
  for (size_t i = 0; i < master.size(); i += 5) {
    master[i] = std::ldexp(master[i], -static_cast<int>(i % 140));
  }
  for (int64_t i = 0; i < shape.group; ++i) master[static_cast<size_t>(i)] = -0.0f;
  std::vector<uint32_t> words(master.size() / 8);
  std::vector<uint16_t> scale(static_cast<size_t>(shape.rows * shape.groups_per_row()));
  ASSERT_FALSE(quantize_pack_int4(master.data(), shape, words.data(), scale.data(), Serial()));

  DeviceBuffer<float> d_master(static_cast<int64_t>(master.size()));
  DeviceBuffer<uint32_t> d_words(static_cast<int64_t>(words.size()));
  DeviceBuffer<uint16_t> d_scale(static_cast<int64_t>(scale.size()));
  DeviceBuffer<uint16_t> d_weight(static_cast<int64_t>(master.size()));
  DeviceBuffer<unsigned long long> d_bad(1);
  const unsigned long long none = ~0ull;
  d_master.upload(master.data());
  d_bad.upload(&none);
  cuda::quantize_pack_int4(d_master.data(), shape, d_words.data(), d_scale.data(), d_bad.data(),
                           nullptr);
  cuda::dequantize_int4(d_words.data(), d_scale.data(), shape, d_weight.data(), nullptr);
  std::vector<uint32_t> got(words.size());
  std::vector<uint16_t> got_scale(scale.size());
  std::vector<uint16_t> weight(master.size());
  unsigned long long bad = 0;
  d_words.download(got.data());
  d_scale.download(got_scale.data());
  d_weight.download(weight.data());
  d_bad.download(&bad);
  EXPECT_EQ(got, words);
  EXPECT_EQ(got_scale, scale);
  EXPECT_EQ(bad, none);
  std::vector<int8_t> code(master.size());
  quant::unpack_rows(words.data(), shape.rows, shape.cols, 4, code.data());
  std::vector<uint16_t> want(master.size());
  quant::dequantize_rows(code.data(), scale.data(), shape, want.data());
  EXPECT_EQ(weight, want);
}

INSTANTIATE_TEST_SUITE_P(Shapes, QuantizeCuda,
                         ::testing::Values(quant::GroupShape{1, 32, 32},
                                           quant::GroupShape{3, 96, 32},
                                           quant::GroupShape{7, 128, 64},
                                           quant::GroupShape{70001, 32, 32},
                                           quant::GroupShape{513, 1536, 128}));

TEST(QuantizeCudaProblem, IsTheFirstBadGroup) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU on this machine";
  const quant::GroupShape shape{4, 64, 32};
  std::vector<float> master(256, 0.5f);
  master[2 * 64 + 40] = INFINITY;
  master[3 * 64] = NAN;
  DeviceBuffer<float> d_master(256);
  DeviceBuffer<uint32_t> d_words(32);
  DeviceBuffer<uint16_t> d_scale(8);
  DeviceBuffer<unsigned long long> d_bad(1);
  unsigned long long bad = ~0ull;
  d_master.upload(master.data());
  d_bad.upload(&bad);
  cuda::quantize_pack_int4(d_master.data(), shape, d_words.data(), d_scale.data(), d_bad.data(),
                           nullptr);
  d_bad.download(&bad);
  EXPECT_EQ(bad / 2, 5u);
  EXPECT_EQ(bad % 2, 0u) << "not an overflow but a weight that is not finite";
}

}  // namespace
}  // namespace nibble::kernels
