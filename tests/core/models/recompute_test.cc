// Activations that are dropped and computed again: the same gradients, to the bit.
#include "core/models/recompute.h"

#include <gtest/gtest.h>

#include <ATen/ops/ones.h>

#include "tests/core/models/oracle_model.h"

namespace nibble {
namespace {

constexpr Recompute kSettings[] = {Recompute::kNone, Recompute::kSelective, Recompute::kFull};

// Resident weights that note when layers are entered and left.
class NotedWeights final : public ops::WeightSource {
 public:
  explicit NotedWeights(ResidentWeights& weights) : weights_(weights) {}
  void enter_layer(int64_t layer, ops::Pass pass) override { note('+', layer, pass); }
  void leave_layer(int64_t layer, ops::Pass pass) override { note('-', layer, pass); }
  kernels::WeightView weight(int64_t parameter) const override {
    return weights_.weight(parameter);
  }
  float* grad(int64_t parameter) override { return weights_.grad(parameter); }
  const std::string& notes() const { return notes_; }

 private:
  void note(char what, int64_t layer, ops::Pass pass) {
    notes_ += what + std::to_string(layer) + (pass == ops::Pass::kForward ? "f " : "b ");
  }
  ResidentWeights& weights_;
  std::string notes_;
};

// What a pass over two groups leaves.
struct Left {
  std::vector<float> log_probs;
  std::vector<std::vector<float>> gradients;
  std::vector<at::Tensor> routes;
  std::string notes;
};

Left run(const std::string& name, Recompute recompute, ActivationType activations,
         const std::vector<at::Tensor>& replay = {}) {
  OracleModel model(name, "int4_sym7");
  model.weights->enable_gradients();
  NotedWeights weights(*model.weights);
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  const auto part = [&](int begin, int end) {
    return std::vector<int32_t>(text.begin() + begin, text.begin() + end);
  };
  const std::vector<SequenceGroup> groups = {{part(0, 9), {part(9, 14), part(4, 11), part(2, 4)}},
                                             {part(3, 4), {part(4, 16)}}};
  TapeResult result;
  {
    const PackedBatch batch = pack_groups(groups);  // gone before the backward pass
    TapeInputs inputs{batch, replay};
    inputs.recompute = recompute;
    result = run_log_probs(model.spec, weights, model.rope, inputs, 0.7f, activations);
  }
  at::Tensor scale = at::ones({result.log_prob.numel()});
  for (int64_t i = 0; i < scale.numel(); i += 3) scale.data_ptr<float>()[i] = -0.5f;
  result.log_prob.backward(scale);
  Left left;
  left.log_probs.assign(result.log_prob.const_data_ptr<float>(),
                        result.log_prob.const_data_ptr<float>() + result.log_prob.numel());
  left.routes = result.routes;
  left.notes = weights.notes();
  for (int64_t p = 0; p < model.spec.table.size(); ++p) {
    const float* grad = model.weights->grad(p);
    left.gradients.emplace_back(grad, grad + model.spec.table.at(p).num_elements());
  }
  return left;
}

class RecomputeTape : public ::testing::TestWithParam<std::string> {};

TEST_P(RecomputeTape, GradientsAndRoutesAreTheSameBitsAndLayersAreEnteredAsOften) {
  for (const auto activations : {ActivationType::kFloat32, ActivationType::kBfloat16}) {
    const Left want = run(GetParam(), Recompute::kNone, activations);
    for (const Recompute recompute : kSettings) {
      const Left got = run(GetParam(), recompute, activations);
      EXPECT_EQ(got.log_probs, want.log_probs);
      EXPECT_EQ(got.gradients, want.gradients);
      EXPECT_EQ(got.notes, want.notes);
      ASSERT_EQ(got.routes.size(), want.routes.size());
      for (size_t i = 0; i < got.routes.size(); ++i) {
        EXPECT_TRUE(got.routes[i].equal(want.routes[i]));
      }
    }
  }
}

TEST_P(RecomputeTape, ReplayedRoutesAreReplayedAgain) {
  std::vector<at::Tensor> others;
  for (const at::Tensor& own : run(GetParam(), Recompute::kNone, ActivationType::kFloat32).routes) {
    others.push_back(own.add(1).remainder(OracleModel(GetParam()).spec.config.moe.num_experts));
  }
  if (others.empty()) return;  // a dense model
  const Left want = run(GetParam(), Recompute::kNone, ActivationType::kFloat32, others);
  for (const Recompute recompute : kSettings) {
    const Left got = run(GetParam(), recompute, ActivationType::kFloat32, others);
    EXPECT_EQ(got.gradients, want.gradients);
  }
}

TEST_P(RecomputeTape, WithoutGradientsNothingIsComputedTwice) {
  OracleModel model(GetParam());
  const auto want = model.log_probs(0);
  const PackedBatch batch = pack_sequence(model.ids(0));
  for (const Recompute recompute : kSettings) {
    const at::NoGradGuard no_grad;
    NotedWeights weights(*model.weights);
    TapeInputs inputs{batch};
    inputs.recompute = recompute;
    const TapeResult result =
        run_log_probs(model.spec, weights, model.rope, inputs, 1.0f, ActivationType::kFloat32);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), result.log_prob.const_data_ptr<float>()));
    EXPECT_EQ(weights.notes().find('b'), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RecomputeTape, ::testing::ValuesIn(oracle_names()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace nibble
