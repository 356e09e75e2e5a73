// CUDA matrix products against the CPU's; exactness over batches; w' to the bit.
#include "core/kernels/linear.h"

#include "core/kernels/quantize.h"
#include "core/kernels_cuda/dequantize.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/panel_linear.h"
#include "tests/core/kernels_cuda/gpu_test.h"

namespace nibble::kernels {
namespace {

// A matrix on both sides.
struct Matrix {
  std::vector<uint32_t> words;
  std::vector<uint16_t> scale, bf16;
  WeightView host;
  DeviceBuffer<uint32_t> d_words{1};
  DeviceBuffer<uint16_t> d_scale{1}, d_bf16{1};
  DeviceBuffer<WeightView> entry{1};
  cuda::DeviceWeight device;
};

Matrix make_matrix(int64_t rows, int64_t cols, int64_t group) {
  Matrix m;
  const auto values = random_floats(rows * cols, 7);
  WeightView view;
  if (group > 0) {
    m.words.resize(static_cast<size_t>(rows * cols / 8));
    m.scale.resize(static_cast<size_t>(rows * cols / group));
    quantize_pack_int4(values.data(), {rows, cols, group}, m.words.data(), m.scale.data(),
                       Serial());
    m.host = {WeightFormat::kInt4, m.words.data(), m.scale.data(), rows, cols, group};
    m.d_words = on_device(m.words);
    m.d_scale = on_device(m.scale);
    view = {WeightFormat::kInt4, m.d_words.data(), m.d_scale.data(), rows, cols, group};
  } else {
    for (const float v : values) m.bf16.push_back(quant::float_to_bf16(v));
    m.host = {WeightFormat::kBf16, m.bf16.data(), nullptr, rows, cols, 0};
    m.d_bf16 = on_device(m.bf16);
    view = {WeightFormat::kBf16, m.d_bf16.data(), nullptr, rows, cols, 0};
  }
  m.entry.upload(&view);
  m.device = {view, m.entry.data()};
  return m;
}

class LinearCuda : public GpuTest {};

TEST_F(LinearCuda, ProductsAreTheCpusForEveryFormatAndShape) {
  for (const auto& [rows, cols, group] : {std::tuple{64, 128, 32},
                                          {576, 1536, 32},
                                          {1536, 576, 64},
                                          {256, 1024, 128},
                                          {100, 160, 32},
                                          {8, 64, 0},
                                          {300, 576, 0}}) {
    const Matrix m = make_matrix(rows, cols, group);
    for (const int64_t tokens : {1, 3, 8, 9, 16, 17, 64, 130}) {
      const auto x = random_bf16(tokens * cols, 5);
      const auto y = poisoned<float>(tokens * rows);
      const auto rounded = poisoned<uint16_t>(tokens * rows);
      const auto dx = on_device(x);
      cuda::linear(dx.data(), m.device, tokens, y.data(), nullptr);
      cuda::linear(dx.data(), m.device, tokens, rounded.data(), nullptr);
      std::vector<float> want(static_cast<size_t>(tokens * rows));
      linear(widened(x).data(), m.host, tokens, want.data(), rows, serial);
      EXPECT_LT(relative_error(on_host(y), want), 1e-5) << rows << " " << cols << " " << tokens;
      std::vector<uint16_t> once;
      for (const float v : on_host(y)) once.push_back(quant::float_to_bf16(v));
      EXPECT_EQ(on_host(rounded), once);
    }
  }
}

TEST_F(LinearCuda, ATokensResultHasTheSameBitsInEveryBatch) {
  for (const int64_t group : {0, 32, 128}) {
    const int64_t rows = 192, cols = 2304, most = 200;
    const Matrix m = make_matrix(rows, cols, group);
    const auto dx = on_device(random_bf16(most * cols, 5));
    const auto y = poisoned<float>(most * rows);
    cuda::linear(dx.data(), m.device, most, y.data(), nullptr);
    const auto all = on_host(y);
    for (const int64_t tokens : {1, 8, 13, 16, 17, 64, 65}) {
      cuda::linear(dx.data(), m.device, tokens, y.data(), nullptr);
      const auto some = on_host(y);
      EXPECT_TRUE(std::equal(some.begin(), some.begin() + tokens * rows, all.begin())) << tokens;
    }
  }
}

TEST_F(LinearCuda, ManyTokensThroughAPanelGetTheSameBits) {
  if (!cuda::has_panel_linear()) GTEST_SKIP() << "too little shared memory on this GPU";
  for (const auto& [rows, cols, group] : {std::tuple{128, 128, 32},
                                          {136, 96, 32},
                                          {1000, 2304, 128},
                                          {64, 1024, 0},
                                          {264, 2560, 64},
                                          {520, 9728, 128},
                                          {4104, 1184, 32}}) {  // enough rows for the large tile
    const Matrix m = make_matrix(rows, cols, group);
    const auto panel = poisoned<uint16_t>(int64_t{rows} * cols);
    cuda::dequantize(std::span(&m.device.view, 1), panel.data(), nullptr);
    for (const int64_t tokens : {1, 64, 127, 128, 300}) {
      const auto dx = on_device(random_bf16(tokens * cols, 5));
      const auto y = poisoned<float>(tokens * rows), want = poisoned<float>(tokens * rows);
      const auto rounded = poisoned<uint16_t>(tokens * rows);
      const auto want_rounded = poisoned<uint16_t>(tokens * rows);
      cuda::linear(dx.data(), m.device, tokens, want.data(), nullptr);
      cuda::linear(dx.data(), m.device, tokens, want_rounded.data(), nullptr);
      cuda::panel_linear(dx.data(), panel.data(), rows, cols, tokens, y.data(), nullptr);
      cuda::panel_linear(dx.data(), panel.data(), rows, cols, tokens, rounded.data(), nullptr);
      EXPECT_EQ(on_host(y), on_host(want)) << rows << " " << cols << " " << tokens;
      EXPECT_EQ(on_host(rounded), on_host(want_rounded)) << rows << " " << cols << " " << tokens;
      if (group > 0) continue;
      const auto in_place = poisoned<uint16_t>(tokens * rows);
      cuda::panel_linear(dx.data(), m.device, tokens, in_place.data(), nullptr);
      EXPECT_EQ(on_host(in_place), on_host(want_rounded)) << rows << " " << cols << " " << tokens;
    }
  }
}

TEST_F(LinearCuda, ExpertsThroughPanelsGetTheSameBits) {
  if (!cuda::has_panel_linear()) GTEST_SKIP() << "too little shared memory on this GPU";
  const int64_t rows = 72, cols = 1184, experts = 3;
  const std::vector<int32_t> begin = {0, 131, 131, 400};
  const Matrix m = make_matrix(experts * rows, cols, 32);
  const auto panel = poisoned<uint16_t>(experts * rows * cols);
  cuda::dequantize(std::span(&m.device.view, 1), panel.data(), nullptr);
  std::vector<WeightView> views;
  for (int64_t e = 0; e < experts; ++e) {
    WeightView view = m.device.view;
    view.rows = rows;
    view.data = m.d_words.data() + e * rows * cols / 8;
    view.scale = m.d_scale.data() + e * rows * cols / 32;
    views.push_back(view);
  }
  const auto table = on_device(views);
  const auto d_begin = on_device(begin);
  const int64_t pairs = begin.back();
  const auto dx = on_device(random_bf16(pairs * cols, 5));
  const auto y = poisoned<uint16_t>(pairs * rows), want = poisoned<uint16_t>(pairs * rows);
  cuda::grouped_linear(dx.data(), {views[0], table.data(), experts, 1}, d_begin.data(), pairs,
                       want.data(), nullptr);
  cuda::grouped_panel_linear(dx.data(), panel.data(), experts, rows, cols, d_begin.data(), pairs,
                             y.data(), nullptr);
  EXPECT_EQ(on_host(y), on_host(want));
}

TEST_F(LinearCuda, TheMatrixMultipliedWithIsTheQuantizersToTheBit) {
  // Unit vectors read w' out of the product.
  const int64_t rows = 64, cols = 256;
  for (const int64_t group : {32, 64, 128}) {
    const Matrix m = make_matrix(rows, cols, group);
    std::vector<uint16_t> identity(static_cast<size_t>(cols * cols), 0);
    for (int64_t c = 0; c < cols; ++c) {
      identity[static_cast<size_t>(c * cols + c)] = quant::float_to_bf16(1.0f);
    }
    const auto y = poisoned<uint16_t>(cols * rows);
    cuda::linear(on_device(identity).data(), m.device, cols, y.data(), nullptr);
    const auto panel = poisoned<uint16_t>(rows * cols);
    cuda::dequantize(std::span(&m.device.view, 1), panel.data(), nullptr);
    const auto product = on_host(y);
    const auto direct = on_host(panel);
    std::vector<float> want(static_cast<size_t>(rows * cols));
    dequantize(m.host, want.data(), serial);
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
        ASSERT_EQ(product[c * rows + r], quant::float_to_bf16(want[r * cols + c]));
        ASSERT_EQ(direct[r * cols + c], product[c * rows + r]);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
