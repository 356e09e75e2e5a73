#include "core/kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
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
