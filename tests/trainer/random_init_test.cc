#include "trainer/state/random_init.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/base/error.h"

namespace nibble {
namespace {

const kernels::Serial kSerial;

ParameterSpec matrix(int64_t rows, int64_t cols) {
  return {"model.layers.0.mlp.up_proj", ParameterRole::kMlp, rows, cols, 0, -1};
}

std::vector<float> draw(const ParameterSpec& spec, int64_t parameter, RowShard rows,
                        const RandomInit& init) {
  std::vector<float> out(static_cast<size_t>(rows.rows() * spec.cols), -7.0f);
  draw_rows(spec, parameter, rows, init, kSerial, out);
  return out;
}

TEST(DrawRows, AnyNumberOfRanksDrawsTheSameMatrix) {
  const ParameterSpec spec = matrix(37, 51);
  const auto whole = draw(spec, 4, {0, 37}, {9, 0.02});
  for (const int world : {2, 3, 7}) {
    std::vector<float> joined;
    for (int rank = 0; rank < world; ++rank) {
      const auto part = draw(spec, 4, row_shard(37, rank, world), {9, 0.02});
      joined.insert(joined.end(), part.begin(), part.end());
    }
    EXPECT_EQ(joined, whole) << world << " ranks";
  }
}

TEST(DrawRows, SeedAndParameterGiveOtherWeights) {
  const ParameterSpec spec = matrix(8, 8);
  const auto first = draw(spec, 4, {0, 8}, {9, 1.0});
  EXPECT_EQ(draw(spec, 4, {0, 8}, {9, 1.0}), first);
  EXPECT_NE(draw(spec, 5, {0, 8}, {9, 1.0}), first);
  EXPECT_NE(draw(spec, 4, {0, 8}, {10, 1.0}), first);
  EXPECT_NE(draw(spec, 4, {0, 8}, {9 + (uint64_t{1} << 32), 1.0}), first);
}

// Kolmogorov-Smirnov against the normal distribution; n = 200,000, so 1.63 / sqrt(n) is the
// 1 % limit.
TEST(DrawRows, AMatrixIsNormalWithTheGivenDeviation) {
  const ParameterSpec spec = matrix(400, 500);
  auto values = draw(spec, 0, {0, 400}, {3, 0.05});
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  double largest = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double want = 0.5 * std::erfc(-static_cast<double>(values[i]) / 0.05 / std::sqrt(2.0));
    largest = std::max(largest, std::fabs(want - static_cast<double>(i) / count));
  }
  EXPECT_LT(largest, 1.63 / std::sqrt(count));
}

TEST(DrawRows, ANormIsOne) {
  const ParameterSpec spec{"model.norm", ParameterRole::kNorm, 1, 5, -1, -1};
  EXPECT_EQ(draw(spec, 0, {0, 1}, {3, 0.05}), std::vector<float>(5, 1.0f));
}

TEST(InitializerRange, IsReadAndChecked) {
  EXPECT_EQ(initializer_range(Json::parse("{\"initializer_range\": 0.1}"), "c"), 0.1);
  EXPECT_EQ(initializer_range(Json::parse("{}"), "c"), 0.02);
  for (const char* bad : {"{\"initializer_range\": 0}", "{\"initializer_range\": \"x\"}",
                          "{\"initializer_range\": -1}"}) {
    EXPECT_THROW(initializer_range(Json::parse(bad), "c"), Error) << bad;
  }
}

}  // namespace
}  // namespace nibble
