// Scales and blocks of GPTQ, on every instruction set, against loops over one weight at a time.
#include "core/kernels/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <utility>

#include "core/kernels/isa.h"
#include "tests/core/kernels/random_data.h"

namespace nibble::kernels {
namespace {

constexpr quant::Grid kGrids[] = {quant::Grid::kSym7, quant::Grid::kSym7p5, quant::Grid::kSym127};

std::vector<Isa> available() {
  std::vector<Isa> found;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_is_available(isa)) found.push_back(isa);
  }
  return found;
}

TEST(Gptq, ErrorsOfScalesAreThoseOfOneWeightAtATime) {
  for (const quant::Grid grid : kGrids) {
    for (const int64_t group : {32, 128}) {
      const auto weight = random_bf16(group, 1, 0.05f);
      std::vector<float> importance = random_floats(group, 2);
      for (float& value : importance) value = std::fabs(value);
      std::vector<float> scale;
      for (int i = 0; i < kScaleLanes; ++i) {
        const float step = 0.02f / quant::grid_limits(grid).divisor;
        scale.push_back(
            quant::bf16_to_float(quant::float_to_bf16(step * static_cast<float>(i + 1))));
      }
      for (const float* weights :
           {static_cast<const float*>(nullptr), std::as_const(importance).data()}) {
        std::vector<float> want;
        for (const float s : scale) {
          float sum = 0.0f;
          for (size_t i = 0; i < weight.size(); ++i) {
            const float error = square_error(quant::bf16_to_float(weight[i]), s, grid);
            sum += weights == nullptr ? error : weights[i] * error;
          }
          want.push_back(sum);
        }
        for (const Isa isa : available()) {
          std::vector<float> got(scale.size());
          isa_table(isa).group_errors(weight.data(), weights, group, quant::grid_limits(grid),
                                      scale.data(), got.data());
          EXPECT_EQ(got, want) << isa_name(isa);
        }
      }
    }
  }
}

TEST(Gptq, RowsAreThoseOfOneRowAtATime) {
  constexpr int64_t kRows = 37, kAllCols = 160, kBegin = 32, kGroup = 32;
  constexpr int64_t kGroups = kAllCols / kGroup;
  constexpr int8_t kPoison = -100;
  const auto weight = random_floats(kRows * kAllCols, 5, 0.05f);
  std::vector<float> factor = random_floats(kAllCols * kAllCols, 6, 0.1f);
  for (int64_t i = 0; i < kAllCols; ++i) factor[static_cast<size_t>(i * (kAllCols + 1))] = 1.25f;
  std::vector<int64_t> column(static_cast<size_t>(kAllCols));
  std::iota(column.rbegin(), column.rend(), int64_t{0});
  std::vector<uint16_t> scale;
  for (const float value : random_floats(kRows * kGroups, 7, 0.002f)) {
    scale.push_back(quant::float_to_bf16(0.001f + std::fabs(value)));
  }
  for (const quant::Grid grid : kGrids) {
    for (const int64_t cols : {128, 96, 1}) {
      std::vector<int8_t> code(weight.size(), kPoison), want_code = code;
      std::vector<float> error(static_cast<size_t>(kRows * cols)), want_error = error;
      const GptqBlock block{weight.data() + kBegin,
                            kAllCols,
                            kRows,
                            cols,
                            factor.data() + kBegin * (kAllCols + 1),
                            kAllCols,
                            column.data() + kBegin,
                            scale.data(),
                            kGroups,
                            kGroup,
                            grid,
                            code.data(),
                            kAllCols,
                            error.data()};
      for (int64_t row = 0; row < kRows; ++row) {
        std::vector<float> w(block.weight + row * kAllCols, block.weight + row * kAllCols + cols);
        for (int64_t j = 0; j < cols; ++j) {
          const int64_t to = block.column[j];
          const float s =
              quant::bf16_to_float(scale[static_cast<size_t>(row * kGroups + to / kGroup)]);
          const float value = w[static_cast<size_t>(j)];
          const int q = quant::quantize_code(value, s, grid);
          const float* own = block.factor + j * kAllCols;
          const float e = (value - quant::bf16_to_float(quant::dequantize_code(q, s))) / own[j];
          want_code[static_cast<size_t>(row * kAllCols + to)] = static_cast<int8_t>(q);
          want_error[static_cast<size_t>(row * cols + j)] = e;
          for (int64_t k = j + 1; k < cols; ++k) w[static_cast<size_t>(k)] -= e * own[k];
        }
      }
      for (const Isa isa : available()) {
        std::ranges::fill(code, kPoison);
        std::ranges::fill(error, 0.0f);
        isa_table(isa).gptq_rows(block, quant::grid_limits(grid), 0, 19);
        isa_table(isa).gptq_rows(block, quant::grid_limits(grid), 19, kRows);
        EXPECT_EQ(code, want_code) << isa_name(isa) << " " << cols;
        EXPECT_EQ(error, want_error) << isa_name(isa) << " " << cols;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
