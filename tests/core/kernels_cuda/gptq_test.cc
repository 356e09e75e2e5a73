// Scales and blocks of GPTQ against the CPU's.
#include "core/kernels/gptq.h"

#include <numeric>

#include "tests/core/kernels_cuda/weight_kernels_fixture.h"

namespace nibble::kernels {
namespace {

using GptqCuda = WeightKernelsCuda;

TEST_F(GptqCuda, ScalesAreTheCpus) {
  for (const int64_t group : {32, 64, 128}) {
    for (const quant::Grid grid :
         {quant::Grid::kSym7, quant::Grid::kSym7p5, quant::Grid::kSym127}) {
      const quant::GroupShape shape{67, 384, group};
      auto weight = random_bf16(shape.rows * shape.cols, 3, 0.05f);
      std::fill_n(weight.begin(), group, uint16_t{0});
      std::vector<float> importance = random_floats(shape.cols, 4, 1.0f);
      for (float& value : importance) value = std::fabs(value);
      std::vector<uint16_t> scale(static_cast<size_t>(shape.rows * shape.groups_per_row()));
      const auto d_weight = on_device(weight);
      const auto d_importance = on_device(importance);
      auto d_scale = poisoned<uint16_t>(std::ssize(scale));
      group_scales({weight.data(), shape, grid, ScaleSearch::kNone, nullptr, scale.data()}, serial);
      gpu->group_scales(
          {d_weight.data(), shape, grid, ScaleSearch::kNone, nullptr, d_scale.data()});
      EXPECT_EQ(on_host(d_scale), scale);
      // Sums go in another order, so that two candidates as good as each other may change places.
      group_scales({weight.data(), shape, grid, ScaleSearch::kMse, importance.data(), scale.data()},
                   serial);
      gpu->group_scales(
          {d_weight.data(), shape, grid, ScaleSearch::kMse, d_importance.data(), d_scale.data()});
      const auto searched = on_host(d_scale);
      int64_t differing = 0;
      for (size_t i = 0; i < scale.size(); ++i) differing += searched[i] != scale[i] ? 1 : 0;
      EXPECT_LE(differing, std::ssize(scale) / 50);
    }
  }
}

TEST_F(GptqCuda, BlocksAreTheCpus) {
  constexpr int64_t kRows = 1031;
  for (const int64_t cols : {128, 96, 32}) {
    const int64_t all_cols = 256, begin = 64, group = 32, groups = all_cols / group;
    const auto weight = random_floats(kRows * all_cols, 5, 0.05f);
    std::vector<float> factor = random_floats(all_cols * all_cols, 6, 0.1f);
    for (int64_t i = 0; i < all_cols; ++i) {
      for (int64_t j = 0; j < i; ++j) factor[static_cast<size_t>(i * all_cols + j)] = 0.0f;
      factor[static_cast<size_t>(i * all_cols + i)] = 1.0f;
    }
    std::vector<int64_t> column(static_cast<size_t>(all_cols));
    std::iota(column.rbegin(), column.rend(), int64_t{0});  // turned round
    std::vector<uint16_t> scale(static_cast<size_t>(kRows * groups), quant::float_to_bf16(0.01f));
    const auto poison = static_cast<int8_t>(-100);
    std::vector<int8_t> code(static_cast<size_t>(kRows * all_cols), poison);
    std::vector<float> error(static_cast<size_t>(kRows * cols));
    const auto d_weight = on_device(weight);
    const auto d_factor = on_device(factor);
    const auto d_column = on_device(column);
    const auto d_scale = on_device(scale);
    auto d_code = on_device(code);
    auto d_error = poisoned<float>(std::ssize(error));
    GptqBlock block{weight.data() + begin,
                    all_cols,
                    kRows,
                    cols,
                    factor.data() + begin * all_cols + begin,
                    all_cols,
                    column.data() + begin,
                    scale.data(),
                    groups,
                    group,
                    quant::Grid::kSym7,
                    code.data(),
                    all_cols,
                    error.data()};
    gptq_block(block, serial);
    block.weight = d_weight.data() + begin;
    block.factor = d_factor.data() + begin * all_cols + begin;
    block.column = d_column.data() + begin;
    block.scale = d_scale.data();
    block.code = d_code.data();
    block.error = d_error.data();
    gpu->gptq_block(block);
    // A product and a sum are rounded once there: a code on an edge may fall to the other side.
    const auto found = on_host(d_code);
    int64_t differing = 0;
    for (size_t i = 0; i < code.size(); ++i) {
      EXPECT_EQ(code[i] == poison, found[i] == poison);
      differing += code[i] != found[i] ? 1 : 0;
    }
    EXPECT_LE(differing, kRows * cols / 1000);
    EXPECT_LT(relative_error(on_host(d_error), error), 0.02);
  }
}

}  // namespace
}  // namespace nibble::kernels
