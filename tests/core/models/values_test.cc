// A critic's values, and the gradients of its loss, against Transformers (oracles/critic).
#include <gtest/gtest.h>

#include <ATen/ops/from_blob.h>

#include <cmath>
#include <utility>

#include "tests/core/models/oracle_model.h"

namespace nibble {
namespace {

constexpr float kClip = 0.2f;

// The body of a tiny checkpoint under the fixture's head.
class ValueOracle : public ::testing::TestWithParam<std::string> {
 protected:
  ValueOracle()
      : body_(GetParam()),
        fixture_(test_root() / "tests/oracles/critic/values.safetensors"),
        spec_(make_model_spec(value_model(body_.spec.config))),
        weights_(spec_.table, plan_bf16(spec_.table)) {
    for (int64_t p = 0; p < spec_.table.size(); ++p) {
      if (p == spec_.table.lm_head) continue;
      EXPECT_EQ(spec_.table.at(p).name(), body_.spec.table.at(p).name());
      weights_.stored(p).bf16 = body_.weights->stored(p).bf16;
    }
    const TensorView head = fixture_.tensor(GetParam() + ".head");
    weights_.stored(spec_.table.lm_head)
        .bf16.assign(std::span(head.as<uint16_t>(), static_cast<size_t>(spec_.config.hidden)));
  }

  std::vector<float> floats(const std::string& name) const {
    const TensorView view = fixture_.tensor(GetParam() + "." + name);
    return {view.as<float>(), view.as<float>() + view.bytes.size() / sizeof(float)};
  }
  // Every token of the sequence, as a prompt.
  PackedBatch batch() const {
    const TensorView ids = fixture_.tensor(GetParam() + ".ids");
    const SequenceGroup whole{
        {ids.as<int32_t>(), ids.as<int32_t>() + ids.bytes.size() / sizeof(int32_t)}, {}};
    return pack_groups(std::span(&whole, 1));
  }

  OracleModel body_;
  SafetensorsFile fixture_;
  ModelSpec spec_;
  ResidentWeights weights_;
};

double norm_of(std::span<const float> values) {
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  return std::sqrt(squares);
}

TEST_P(ValueOracle, ValuesAndGradientsMatchTransformersInFloat32) {
  weights_.enable_gradients();
  const at::Tensor values = run_values(spec_, weights_, body_.rope, {batch()});
  const std::vector<float> want = floats("values"), old = floats("old_values"),
                           returns = floats("returns");
  ASSERT_EQ(values.numel(), std::ssize(want));
  const auto count = static_cast<float>(want.size());
  float loss = 0;
  std::vector<float> grad;
  for (size_t i = 0; i < want.size(); ++i) {
    const float value = values.const_data_ptr<float>()[i];
    EXPECT_NEAR(value, want[i], 5e-5f) << i;
    const float clipped = std::min(std::max(value, old[i] - kClip), old[i] + kClip);
    const float error = value - returns[i], held = clipped - returns[i];
    const bool is_held = held * held > error * error;
    loss += (is_held ? held * held : error * error) / count;
    grad.push_back(is_held ? 0 : 2 * error / count);
  }
  EXPECT_NEAR(loss / floats("loss")[0], 1, 1e-5);
  values.backward(at::from_blob(grad.data(), {values.numel()}, at::TensorOptions(at::kFloat)));
  int checked = 0;
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    const std::string name = "grad." + spec_.table.at(p).name();
    if (!fixture_.contains(GetParam() + "." + name)) continue;
    std::vector<float> difference = floats(name);
    const double norm = norm_of(difference);
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= weights_.grad(p)[i];
    EXPECT_LE(norm_of(difference), 1e-4 * norm) << name;
    EXPECT_GT(norm, 0) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 4);
}

TEST_P(ValueOracle, AHeadOfZerosGivesZerosAndOnlyItsOwnGradient) {
  weights_.stored(spec_.table.lm_head).bf16.fill_zero();
  weights_.enable_gradients();
  const at::Tensor values = run_values(spec_, weights_, body_.rope, {batch()});
  EXPECT_EQ(values.abs().max().item<float>(), 0);
  values.sum().backward();
  const auto gradient = [&](int64_t p) {
    return norm_of({weights_.grad(p), static_cast<size_t>(spec_.table.at(p).num_elements())});
  };
  EXPECT_GT(gradient(spec_.table.lm_head), 0);
  EXPECT_EQ(gradient(spec_.table.final_norm), 0);
  EXPECT_EQ(gradient(spec_.table.embedding), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, ValueOracle,
                         ::testing::Values("dense_untied", "dense_tied", "moe_norm", "llama_smol"));

}  // namespace
}  // namespace nibble
