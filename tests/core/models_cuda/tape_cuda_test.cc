// The trainer's executor on the GPU: log-probabilities against Transformers' float32, gradients
// against the CPU's (which are Transformers' to 1e-4), exactness over batches.
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>

#include <cmath>

#include "tests/core/models_cuda/gpu_backend.h"

namespace nibble {
namespace {

using Parameters = std::tuple<std::string, std::string, Numerics>;

class TapeCuda : public ::testing::TestWithParam<Parameters> {
 protected:
  void SetUp() override {
    if (!use_gpu()) GTEST_SKIP() << "no GPU on this machine";
    const auto& [name, variant, numerics] = GetParam();
    model_ = std::make_unique<GpuModel>(name, variant, numerics);
  }
  bool is_moe() const { return model_->host.spec.config.num_moe_layers() > 0; }
  std::unique_ptr<GpuModel> model_;
};

// One prompt with three responses, and another sequence: shared prompts, several segments.
PackedBatch group_batch(const OracleModel& model) {
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  const auto part = [&](int begin, int end) {
    return std::vector<int32_t>(text.begin() + begin, text.begin() + end);
  };
  const std::vector<SequenceGroup> groups = {{part(0, 9), {part(9, 14), part(4, 11), part(2, 4)}},
                                             {part(3, 4), {part(4, 16)}}};
  return pack_groups(groups);
}

TEST_P(TapeCuda, LogProbsStayWithinTheFieldsGapOfTransformersFloat32) {
  OracleModel& host = model_->host;
  const std::string prefix = std::get<1>(GetParam()) == "bf16" ? "" : "sym7.";
  int compared = 0;
  for (int s = 0; s < host.num_sequences(); ++s) {
    const std::string key = prefix + "seq" + std::to_string(s) + ".logprobs_fp32";
    if (host.ids(s).size() < 10 || !host.io.contains(key)) continue;
    const auto got = model_->log_probs(pack_sequence(host.ids(s)));
    const auto want = host.floats(key);
    ASSERT_EQ(got.size(), want.size());
    double mean = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
      mean += std::fabs(got[i] - want[i]) / static_cast<double>(got.size());
    }
    EXPECT_GT(mean, 0.0) << "BF16 activations round";
    EXPECT_LT(mean, is_moe() ? 0.05 : 0.02) << key;
    ++compared;
  }
  EXPECT_GT(compared, 0);
}

TEST_P(TapeCuda, GradientsAreTheCpusToBf16) {
  OracleModel& host = model_->host;
  const PackedBatch batch = group_batch(host);
  host.weights->enable_gradients();
  model_->weights->enable_gradients();
  const TapeResult cpu =
      run_log_probs(host.spec, *host.weights, host.rope, {batch}, 1.0f, ActivationType::kFloat32);
  // The same experts on both sides: rounding may choose others.
  const TapeResult gpu = model_->run(batch, 1.0f, cpu.routes);
  at::Tensor scale = at::ones({cpu.log_prob.numel()});
  for (int64_t i = 0; i < scale.numel(); i += 3) scale.data_ptr<float>()[i] = -0.5f;
  cpu.log_prob.backward(scale);
  gpu.log_prob.backward(scale.to(gpu.log_prob.device()));
  double difference = 0.0, norm = 0.0;
  for (int64_t p = 0; p < host.spec.table.size(); ++p) {
    const int64_t count = host.spec.table.at(p).num_elements();
    std::vector<float> got(static_cast<size_t>(count));
    device_memory(DeviceKind::kCuda).copy(got.data(), model_->weights->grad(p), count * 4);
    const float* want = host.weights->grad(p);
    double d = 0.0, n = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      d += std::pow(static_cast<double>(got[static_cast<size_t>(i)]) - want[i], 2);
      n += std::pow(static_cast<double>(want[i]), 2);
    }
    difference += d;
    norm += n;
    // An expert that few tokens reach has little to average rounding over.
    EXPECT_LE(std::sqrt(d), 0.15 * std::sqrt(n) + 1e-6) << host.spec.table.at(p).module;
  }
  EXPECT_LE(std::sqrt(difference), 0.03 * std::sqrt(norm));
}

TEST_P(TapeCuda, InExactATokensLogProbHasTheSameBitsInEveryBatch) {
  const PackedBatch batch = group_batch(model_->host);
  const auto together = model_->log_probs(batch);
  EXPECT_EQ(together, model_->log_probs(batch));
  if (std::get<2>(GetParam()) != Numerics::kExact) return;
  const std::vector<int32_t> text = model_->host.ids(model_->host.num_sequences() - 1);
  const SequenceGroup alone{{text.begin(), text.begin() + 9},
                            {{text.begin() + 4, text.begin() + 11}}};
  const auto one = model_->log_probs(pack_groups(std::span(&alone, 1)));
  EXPECT_TRUE(std::equal(one.begin(), one.end(), together.begin() + 5));
}

INSTANTIATE_TEST_SUITE_P(Models, TapeCuda,
                         ::testing::Combine(::testing::ValuesIn(oracle_names()),
                                            ::testing::Values("bf16", "int4_sym7"),
                                            ::testing::Values(Numerics::kExact, Numerics::kFast)),
                         [](const auto& param) {
                           return std::get<0>(param.param) + "_" + std::get<1>(param.param) + "_" +
                                  numerics_name(std::get<2>(param.param));
                         });

}  // namespace
}  // namespace nibble
