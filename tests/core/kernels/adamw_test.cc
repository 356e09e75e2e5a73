#include "core/kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/json.h"
#include "core/kernels/isa.h"

namespace nibble::kernels {
namespace {

std::vector<float> floats(const Json& values) {
  const auto wide = values.get<std::vector<double>>();
  return {wide.begin(), wide.end()};
}

// The fixtures' tolerance in float; second moments of tiny gradients lie far below its absolute
// part, so those are held to the relative one.
void expect_near(const std::vector<float>& actual, const Json& expected, double absolute,
                 const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double want = expected[i].get<double>();
    EXPECT_LE(std::abs(actual[i] - want), 2e-5 * std::abs(want) + absolute) << what << " at " << i;
  }
}

void expect_follows_oracle(const Json& run, const IsaTable& table, const std::string& what) {
  std::vector<float> w = floats(run["w0"]);
  std::vector<float> m(w.size(), 0.0f), v(w.size(), 0.0f);
  AdamwParams params;
  params.beta1 = run["betas"][0].get<float>();
  params.beta2 = run["betas"][1].get<float>();
  params.eps = run["eps"].get<float>();
  params.weight_decay = run["weight_decay"].get<float>();
  for (size_t step = 0; step < run["grads"].size(); ++step) {
    params.lr = run["lrs"][step].get<float>();
    params.step = static_cast<int64_t>(step) + 1;
    const auto grad = floats(run["grads"][step]);
    table.adamw(w.data(), m.data(), v.data(), grad.data(), static_cast<int64_t>(w.size()), params,
                Serial());
    expect_near(w, run["w"][step], 1e-6, what + " w after step " + std::to_string(params.step));
  }
  expect_near(m, run["exp_avg"], 1e-7, what + " exp_avg");
  expect_near(v, run["exp_avg_sq"], 0, what + " exp_avg_sq");
}

TEST(Adamw, FollowsTorchOnEveryInstructionSet) {
  const Json fixture = read_json_file(NIBBLE_SOURCE_DIR "/tests/oracles/rl/adamw.json");
  ASSERT_EQ(fixture.size(), 3u);
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_is_available(isa)) continue;
    for (const Json& run : fixture) {
      expect_follows_oracle(run, isa_table(isa),
                            run["name"].get<std::string>() + " " + std::string(isa_name(isa)));
    }
  }
}

// Elements of one tensor with moments in BF16.
struct Bf16State {
  explicit Bf16State(size_t count) : w(count, 1.0f), m(count), v(count) {}
  void update(const std::vector<float>& grad, const AdamwParams& params) {
    adamw_bf16(w.data(), {m.data(), v.data(), 0, 7, 3}, grad.data(), std::ssize(w), params,
               Serial());
  }
  double mean_v() const {
    double sum = 0.0;
    for (const uint16_t bits : v) sum += quant::bf16_to_float(bits);
    return sum / static_cast<double>(v.size());
  }
  std::vector<float> w;
  std::vector<uint16_t> m, v;
};

TEST(AdamwBf16, SecondMomentsComeDownWhereRoundingToNearestWouldStall) {
  AdamwParams params;
  params.beta2 = 0.999f;
  constexpr size_t kCount = 1000;
  Bf16State state(kCount);
  std::vector<float> w(kCount, 1.0f), m(kCount), v(kCount);
  double nearest = 0.0;
  for (params.step = 1; params.step <= 2000; ++params.step) {
    // Large at first, then a tenth: the second moment is to fall to a hundredth.
    const std::vector<float> grad(kCount, params.step <= 100 ? 1.0f : 0.1f);
    state.update(grad, params);
    adamw(w.data(), m.data(), v.data(), grad.data(), kCount, params, Serial());
    const double g = grad[0];
    nearest = quant::round_to_bf16(static_cast<float>(nearest * 0.999 + g * g * 0.001));
  }
  EXPECT_NEAR(state.mean_v() / static_cast<double>(v[0]), 1.0, 0.01);
  EXPECT_GT(nearest, 2.0 * static_cast<double>(v[0])) << "what is avoided here";
  double moved = 0.0;
  for (const float value : state.w) moved += (1.0 - value) / kCount;
  EXPECT_NEAR(moved / (1.0 - static_cast<double>(w[0])), 1.0, 0.01);
}

TEST(AdamwBf16, RoundingIsRightOnAverageAndKeepsWhatIsBf16) {
  for (const float value : {1.0f / 3.0f, -2.7182818f, 1e-12f, 0.0f, 0.15625f}) {
    double sum = 0.0;
    constexpr int kDraws = 1 << 16;
    for (int random = 0; random < kDraws; ++random) {
      sum += quant::bf16_to_float(quant::round_at_random(value, static_cast<uint32_t>(random)));
    }
    EXPECT_NEAR(sum / kDraws, value, 1e-6 * std::fabs(value));
  }
  EXPECT_EQ(quant::bf16_to_float(quant::round_at_random(0.15625f, 0xffff)), 0.15625f);
}

TEST(AdamwBf16, DrawsBelongToPlacesInTheTensorAndToUpdates) {
  std::vector<float> grad(101);
  for (size_t i = 0; i < grad.size(); ++i) grad[i] = std::sin(static_cast<float>(i));
  const auto run = [&](std::vector<size_t> cuts, int64_t step, uint64_t seed) {
    Bf16State state(grad.size());
    size_t begin = 0;
    cuts.push_back(grad.size());
    AdamwParams params;
    params.step = step;
    for (const size_t end : cuts) {
      adamw_bf16(state.w.data() + begin,
                 {state.m.data() + begin, state.v.data() + begin, begin, seed, 3},
                 grad.data() + begin, static_cast<int64_t>(end - begin), params, Serial());
      begin = end;
    }
    return std::tuple(state.w, state.m, state.v);
  };
  const auto whole = run({}, 5, 1);
  EXPECT_EQ(run({1, 3, 6}, 5, 1), whole);
  EXPECT_EQ(run({4, 8}, 5, 1), whole);
  EXPECT_NE(std::get<1>(run({}, 5, 2)), std::get<1>(whole));
  EXPECT_NE(std::get<1>(run({}, 6, 1)), std::get<1>(whole));
}

TEST(Adamw, ScalesTheGradientByTheClippingCoefficient) {
  const std::vector<float> grad = {0.5f, -2.0f, 8.0f};
  const std::vector<float> halved = {0.25f, -1.0f, 4.0f};
  std::vector<float> w1 = {1, 2, 3}, m1(3), v1(3), w2 = w1, m2(3), v2(3);
  AdamwParams params;
  adamw(w2.data(), m2.data(), v2.data(), halved.data(), 3, params, Serial());
  params.grad_scale = 0.5f;
  adamw(w1.data(), m1.data(), v1.data(), grad.data(), 3, params, Serial());
  EXPECT_EQ(w1, w2);
  EXPECT_EQ(m1, m2);
  EXPECT_EQ(v1, v2);
}

}  // namespace
}  // namespace nibble::kernels
