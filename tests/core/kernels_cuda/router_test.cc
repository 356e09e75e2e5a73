// CUDA routing, expert order, combination and grouped products against the CPU's.
#include "core/kernels_cuda/router.h"

#include "core/kernels/expert_order.h"
#include "core/kernels/quantize.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/runs.h"
#include "tests/core/kernels_cuda/gpu_test.h"

namespace nibble::kernels {
namespace {

class RouterCuda : public GpuTest {};

TEST_F(RouterCuda, ChoosesTheCpusExpertsAndItsGradientIsTheCpus) {
  for (const auto& [tokens, experts, top_k, normalize] :
       {std::tuple{1, 4, 2, true}, {37, 8, 3, false}, {300, 128, 8, true}, {5, 200, 6, true}}) {
    const RouterShape shape{tokens, experts, top_k, normalize};
    const auto logits = random_floats(tokens * experts, 1);
    const auto dweight = random_floats(tokens * top_k, 2);
    const auto count = static_cast<size_t>(tokens * top_k);
    std::vector<float> prob(logits.size()), weight(count), dlogits(logits.size());
    std::vector<int32_t> expert(count);
    router_top_k(logits.data(), shape, RouterMode::kChoose, prob.data(), expert.data(),
                 weight.data(), serial);
    router_backward(prob.data(), expert.data(), dweight.data(), shape, dlogits.data(), serial);
    const auto d_logits = on_device(logits), d_dweight = on_device(dweight);
    const auto d_prob = poisoned<float>(tokens * experts),
               d_weight = poisoned<float>(tokens * top_k);
    const auto d_dlogits = poisoned<float>(tokens * experts);
    const auto d_expert = poisoned<int32_t>(tokens * top_k);
    cuda::router_top_k(d_logits.data(), shape, RouterMode::kChoose, d_prob.data(), d_expert.data(),
                       d_weight.data(), nullptr);
    cuda::router_backward(d_prob.data(), d_expert.data(), d_dweight.data(), shape, d_dlogits.data(),
                          nullptr);
    EXPECT_EQ(on_host(d_expert), expert);
    EXPECT_LT(relative_error(on_host(d_weight), weight), 1e-6);
    EXPECT_LT(relative_error(on_host(d_dlogits), dlogits), 1e-5);
    // Replay of the same experts gives the same weights.
    const auto replayed = poisoned<float>(tokens * top_k);
    cuda::router_top_k(d_logits.data(), shape, RouterMode::kReplay, d_prob.data(), d_expert.data(),
                       replayed.data(), nullptr);
    EXPECT_EQ(on_host(replayed), on_host(d_weight));
  }
}

TEST_F(RouterCuda, ATokenWhoseLogitsAreNoNumbersGetsDistinctExpertsAndNoNumbersAsWeights) {
  const int64_t experts = 40, top_k = 6;
  auto logits = random_floats(3 * experts, 1);
  std::fill_n(logits.begin() + experts, experts, std::nanf(""));
  const auto d_prob = poisoned<float>(3 * experts), d_weight = poisoned<float>(3 * top_k);
  const auto d_expert = poisoned<int32_t>(3 * top_k);
  cuda::router_top_k(on_device(logits).data(), {3, experts, top_k, true}, RouterMode::kChoose,
                     d_prob.data(), d_expert.data(), d_weight.data(), nullptr);
  const auto expert = on_host(d_expert);
  const auto weight = on_host(d_weight);
  EXPECT_EQ(std::vector<int32_t>(expert.begin() + top_k, expert.begin() + 2 * top_k),
            (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  for (int64_t i = 0; i < 3 * top_k; ++i) {
    EXPECT_EQ(std::isnan(weight[static_cast<size_t>(i)]), i / top_k == 1);
  }
}

TEST_F(RouterCuda, OrdersPairsAndCombinesThemAsTheCpuDoes) {
  const int64_t tokens = 301, top_k = 3, experts = 17, cols = 96;
  const int64_t pairs = tokens * top_k;
  std::mt19937 random(3);
  std::vector<int32_t> expert(static_cast<size_t>(pairs));
  for (int32_t& e : expert) e = static_cast<int32_t>(random() % (experts - 1));  // one stays empty
  const ExpertOrder order = order_by_expert(expert.data(), tokens, top_k, experts);
  const auto d_expert = on_device(expert);
  const auto begin = poisoned<int32_t>(experts + 1), pair = poisoned<int32_t>(pairs);
  const auto place = poisoned<int32_t>(pairs);
  cuda::order_by_expert(d_expert.data(), pairs, experts, begin.data(), pair.data(), nullptr);
  cuda::invert_pairs(pair.data(), pairs, place.data(), nullptr);
  EXPECT_EQ(on_host(pair), order.pair);
  const auto got_begin = on_host(begin);
  EXPECT_EQ(std::vector<int64_t>(got_begin.begin(), got_begin.end()), order.begin);

  const auto part = random_bf16(pairs * cols, 1), dy = random_bf16(tokens * cols, 2);
  const auto weight = random_floats(pairs, 3);
  const auto d_part = on_device(part), d_dy = on_device(dy);
  const auto d_weight = on_device(weight);
  const auto y = poisoned<uint16_t>(tokens * cols), scaled = poisoned<uint16_t>(pairs * cols);
  const auto dots = poisoned<float>(pairs);
  cuda::combine_experts(d_part.data(), place.data(), d_weight.data(), tokens, top_k, cols, y.data(),
                        nullptr);
  cuda::pair_dots(d_part.data(), place.data(), d_dy.data(), tokens, top_k, cols, dots.data(),
                  nullptr);
  cuda::gather_scaled_pairs(d_dy.data(), pair.data(), d_weight.data(), pairs, top_k, cols,
                            scaled.data(), nullptr);
  std::vector<float> by_pair(static_cast<size_t>(pairs * cols)), want_y(y.count());
  std::vector<float> want_dots(static_cast<size_t>(pairs)), want_scaled(by_pair.size());
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t p = order.pair[static_cast<size_t>(i)];
    for (int64_t c = 0; c < cols; ++c) {
      const float value = quant::bf16_to_float(part[static_cast<size_t>(i * cols + c)]);
      const float g = quant::bf16_to_float(dy[static_cast<size_t>(p / top_k * cols + c)]);
      by_pair[static_cast<size_t>(p * cols + c)] = value;
      want_dots[static_cast<size_t>(p)] += value * g;
      want_scaled[static_cast<size_t>(i * cols + c)] = weight[static_cast<size_t>(p)] * g;
    }
  }
  combine_experts(by_pair.data(), weight.data(), tokens, top_k, cols, want_y.data(), serial);
  EXPECT_LT(relative_error(widened(on_host(y)), want_y), kOneRounding);
  EXPECT_LT(relative_error(on_host(dots), want_dots), 1e-5);
  EXPECT_LT(relative_error(widened(on_host(scaled)), want_scaled), kOneRounding);
}

TEST_F(RouterCuda, AGroupedProductGivesTheBitsOfEachExpertAlone) {
  const int64_t experts = 5, rows = 80, cols = 224, group = 32;
  for (const auto& counts :
       std::vector<std::vector<int32_t>>{{0, 3, 1, 20, 0}, {70, 0, 64, 1, 200}, {1, 0, 0, 0, 0}}) {
    std::vector<int32_t> begin = {0};
    for (const int32_t n : counts) begin.push_back(begin.back() + n);
    const int64_t pairs = begin.back();
    std::vector<DeviceBuffer<uint32_t>> words;
    std::vector<DeviceBuffer<uint16_t>> scales;
    std::vector<WeightView> views;
    for (int64_t e = 0; e < experts; ++e) {
      const auto master = random_floats(rows * cols, static_cast<uint32_t>(e) + 10);
      std::vector<uint32_t> w(static_cast<size_t>(rows * cols / 8));
      std::vector<uint16_t> s(static_cast<size_t>(rows * cols / group));
      quantize_pack_int4(master.data(), {rows, cols, group}, w.data(), s.data(), serial);
      words.push_back(on_device(w));
      scales.push_back(on_device(s));
      views.push_back(
          {WeightFormat::kInt4, words.back().data(), scales.back().data(), rows, cols, group});
    }
    const auto table = on_device(views);
    const auto x = on_device(random_bf16(pairs * cols, 1));
    const auto d_begin = on_device(begin);
    const auto y = poisoned<uint16_t>(pairs * rows);
    cuda::grouped_linear(x.data(), {views[0], table.data(), experts, 1}, d_begin.data(), pairs,
                         y.data(), nullptr);
    const auto got = on_host(y);
    for (size_t e = 0; e < counts.size(); ++e) {
      if (counts[e] == 0) continue;
      const auto alone = poisoned<uint16_t>(counts[e] * rows);
      cuda::linear(x.data() + begin[e] * cols, {views[e], nullptr}, counts[e], alone.data(),
                   nullptr);
      const auto want = on_host(alone);
      EXPECT_TRUE(std::equal(want.begin(), want.end(), got.begin() + begin[e] * rows)) << e;
    }
  }
}

TEST_F(RouterCuda, RunsSumTheRowsOfEachValueInOrder) {
  const int64_t cols = 40, values = 4;
  const std::vector<int64_t> places = {1, 4, 0, 2, 3};  // of values 0 0 2 2 2
  const std::vector<int32_t> begin = {0, 2, 2, 5, 5};
  const auto x = random_bf16(5 * cols, 1);
  const auto d_x = on_device(x);
  const auto d_places = on_device(places);
  const auto d_begin = on_device(begin);
  const cuda::Runs runs{d_places.data(), d_begin.data(), values};
  std::vector<float> want(static_cast<size_t>(values * cols), 0.0f);
  for (int64_t v = 0; v < values; ++v) {
    for (int32_t i = begin[static_cast<size_t>(v)]; i < begin[static_cast<size_t>(v) + 1]; ++i) {
      for (int64_t c = 0; c < cols; ++c) {
        want[static_cast<size_t>(v * cols + c)] +=
            quant::bf16_to_float(x[static_cast<size_t>(places[static_cast<size_t>(i)] * cols + c)]);
      }
    }
  }
  const auto out = poisoned<uint16_t>(values * cols);
  cuda::sum_runs(d_x.data(), runs, cols, out.data(), nullptr);
  std::vector<uint16_t> rounded;
  for (const float v : want) rounded.push_back(quant::float_to_bf16(v));
  EXPECT_EQ(on_host(out), rounded);
  const auto start = random_floats(values * cols, 2);
  const auto sum = on_device(start);
  cuda::add_runs(d_x.data(), runs, cols, /*skip=*/2, sum.data(), nullptr);
  std::vector<float> want_sum = start;
  for (int64_t c = 0; c < cols; ++c)
    want_sum[static_cast<size_t>(c)] += want[static_cast<size_t>(c)];
  EXPECT_EQ(on_host(sum), want_sum);
}

}  // namespace
}  // namespace nibble::kernels
