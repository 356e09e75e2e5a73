#include "core/kernels/linear.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "core/kernels/isa.h"
#include "core/quant/rows.h"
#include "tests/core/kernels/random_data.h"
#include "tests/core/kernels/thread_parallel.h"

namespace nibble::kernels {
namespace {

struct Matrix {
  std::vector<uint16_t> bf16;
  std::vector<uint32_t> words;
  std::vector<uint16_t> scale;
  WeightView view;
};

Matrix bf16_matrix(int64_t rows, int64_t cols) {
  Matrix matrix;
  matrix.bf16 = random_bf16(rows * cols, 7, 0.1f);
  matrix.view = {WeightFormat::kBf16, matrix.bf16.data(), nullptr, rows, cols, 0};
  return matrix;
}

Matrix int4_matrix(int64_t rows, int64_t cols, int64_t group) {
  Matrix matrix;
  const auto weight = random_bf16(rows * cols, 9, 0.1f);
  const quant::GroupShape shape{rows, cols, group};
  matrix.scale.resize(static_cast<size_t>(rows * cols / group));
  std::vector<int8_t> code(static_cast<size_t>(rows * cols));
  quant::quantize_rows(weight.data(), shape, quant::Grid::kSym7, matrix.scale.data(), code.data());
  matrix.words.resize(static_cast<size_t>(rows * cols / 8));
  quant::pack_rows(code.data(), rows, cols, 4, matrix.words.data());
  matrix.bf16.resize(weight.size());
  quant::dequantize_rows(code.data(), matrix.scale.data(), shape, matrix.bf16.data());
  matrix.view = {WeightFormat::kInt4, matrix.words.data(), matrix.scale.data(), rows, cols, group};
  return matrix;
}

// The summation order as the header words it, in plain code.
float ordered_dot(const float* x, const uint16_t* w, int64_t cols) {
  float lane[16] = {};
  for (int64_t k = 0; k < cols; ++k) {
    lane[k % 16] = std::fmaf(x[k], quant::bf16_to_float(w[k]), lane[k % 16]);
  }
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

void expect_bits(const std::vector<float>& a, const std::vector<float>& b,
                 const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * 4), 0) << what;
}

struct LinearCase {
  int64_t m, rows, cols, group;
};

class Linear : public ::testing::TestWithParam<LinearCase> {};

TEST_P(Linear, FollowsTheWrittenOrderOnEveryIsaAndThreadCount) {
  const auto [m, rows, cols, group] = GetParam();
  const Matrix matrix = group == 0 ? bf16_matrix(rows, cols) : int4_matrix(rows, cols, group);
  const auto x = random_floats(m * cols, 3);
  std::vector<float> want(static_cast<size_t>(m * rows));
  double worst = 0.0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t n = 0; n < rows; ++n) {
      want[static_cast<size_t>(i * rows + n)] =
          ordered_dot(x.data() + i * cols, matrix.bf16.data() + n * cols, cols);
      double exact = 0.0;
      for (int64_t k = 0; k < cols; ++k) {
        exact += static_cast<double>(x[static_cast<size_t>(i * cols + k)]) *
                 static_cast<double>(
                     quant::bf16_to_float(matrix.bf16[static_cast<size_t>(n * cols + k)]));
      }
      worst = std::max(
          worst, std::fabs(exact - static_cast<double>(want[static_cast<size_t>(i * rows + n)])));
    }
  }
  EXPECT_LT(worst, 1e-6 * static_cast<double>(cols));
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_is_available(isa)) continue;
    for (const int threads : {1, 3}) {
      std::vector<float> got(want.size(), -1.0f);
      isa_table(isa).linear(x.data(), matrix.view, m, got.data(), rows, ThreadParallel(threads));
      expect_bits(got, want, std::string(isa_name(isa)) + " threads " + std::to_string(threads));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Linear,
                         ::testing::Values(LinearCase{1, 1, 16, 0}, LinearCase{1, 7, 48, 0},
                                           LinearCase{3, 65, 96, 0}, LinearCase{9, 50, 112, 0},
                                           LinearCase{1, 5, 32, 32}, LinearCase{2, 33, 128, 64},
                                           LinearCase{5, 97, 256, 128}, LinearCase{8, 12, 96, 32},
                                           LinearCase{4, 12, 64, 32}, LinearCase{6, 9, 64, 0},
                                           LinearCase{7, 10, 96, 32}, LinearCase{13, 50, 96, 32},
                                           LinearCase{37, 101, 288, 32},
                                           LinearCase{400, 6, 64, 32}));

// Products of one input, of other formats and widths, of named rows, of many rows and of none.
TEST(LinearMany, GivesEachProductTheBitsThatItHasAlone) {
  const Matrix q = int4_matrix(50, 96, 32), k = int4_matrix(9, 96, 32), v = bf16_matrix(9, 96),
               other = int4_matrix(33, 128, 64);
  const auto x = random_floats(400 * 96, 3);
  const auto wide = random_floats(16 * 128, 4);
  const std::vector<int32_t> named = {7, 0, 399, 7, 12};
  const std::vector<Product> products = {{x.data(), q.view, 5},
                                         {x.data(), k.view, 5},
                                         {x.data(), v.view, 5},
                                         {x.data(), k.view, 0},
                                         {x.data(), k.view, 400},
                                         {x.data(), q.view, 400},
                                         {wide.data(), other.view, 1},
                                         {wide.data(), other.view, 16},
                                         {x.data(), q.view, 5, nullptr, 0, named.data()},
                                         {x.data(), k.view, 5, nullptr, 0, named.data()}};
  std::vector<std::vector<float>> want;
  for (const Product& p : products) {
    std::vector<float> rows;
    for (int64_t i = 0; i < p.m; ++i) {
      const float* row = p.x + (p.x_row == nullptr ? i : p.x_row[i]) * p.w.cols;
      rows.insert(rows.end(), row, row + p.w.cols);
    }
    want.emplace_back(static_cast<size_t>(p.m * p.w.rows));
    isa_table(Isa::kScalar).linear(rows.data(), p.w, p.m, want.back().data(), p.w.rows, Serial());
  }
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_is_available(isa)) continue;
    for (const int threads : {1, 3}) {
      std::vector<std::vector<float>> got;
      std::vector<Product> some = products;
      for (Product& p : some) {
        got.emplace_back(static_cast<size_t>(p.m * p.w.rows), -1.0f);
        p.y = got.back().data();
        p.ldy = p.w.rows;
      }
      isa_table(isa).linear_many(some.data(), std::ssize(some), ThreadParallel(threads));
      for (size_t i = 0; i < got.size(); ++i) {
        expect_bits(got[i], want[i], std::string(isa_name(isa)) + " product " + std::to_string(i));
      }
    }
  }
}

TEST(Dequantize, IsExactOnEveryIsa) {
  const Matrix matrix = int4_matrix(13, 96, 32);
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_is_available(isa)) continue;
    std::vector<float> weight(13 * 96);
    isa_table(isa).dequantize(matrix.view, weight.data(), Serial());
    for (size_t i = 0; i < weight.size(); ++i) {
      const float want = quant::bf16_to_float(matrix.bf16[i]);
      ASSERT_EQ(std::bit_cast<uint32_t>(weight[i]), std::bit_cast<uint32_t>(want)) << i;
    }
  }
}

// From the smallest subnormal scale to the last whose largest product is finite.
TEST(Dequantize, CoversEveryCodeUnderEveryScale) {
  for (int bits = 1; bits < 0x7d80; ++bits) {
    const auto scale_bits = static_cast<uint16_t>(bits);
    std::vector<uint16_t> scale(1, scale_bits);
    std::vector<uint32_t> words(4);
    std::vector<int8_t> code(32);
    for (int i = 0; i < 32; ++i) code[static_cast<size_t>(i)] = static_cast<int8_t>(i % 16 - 8);
    quant::pack_rows(code.data(), 1, 32, 4, words.data());
    const WeightView view{WeightFormat::kInt4, words.data(), scale.data(), 1, 32, 32};
    for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
      if (!isa_is_available(isa)) continue;
      std::vector<float> weight(32);
      isa_table(isa).dequantize(view, weight.data(), Serial());
      for (size_t i = 0; i < 32; ++i) {
        const float want =
            quant::bf16_to_float(quant::dequantize_code(code[i], quant::bf16_to_float(scale_bits)));
        ASSERT_EQ(std::bit_cast<uint32_t>(weight[i]), std::bit_cast<uint32_t>(want))
            << bits << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
