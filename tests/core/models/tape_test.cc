// The trainer's executor against Transformers (oracles/models): log-probabilities, routes, entropy,
// gradients, straight-through gradients, routing replay.
#include <gtest/gtest.h>

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tests/core/models/oracle_model.h"

namespace nibble {
namespace {

class TapeOracle : public ::testing::TestWithParam<std::string> {};

void expect_close(const std::vector<float>& got, const std::vector<float>& want, float tolerance,
                  const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], want[i], tolerance) << what << " " << i;
}

TEST_P(TapeOracle, LogProbsMatchTransformersInFloat32) {
  OracleModel model(GetParam());
  for (int s = 0; s < model.num_sequences(); ++s) {
    if (model.ids(s).size() < 2) continue;
    expect_close(model.log_probs(s), model.floats("seq" + std::to_string(s) + ".logprobs_fp32"),
                 5e-5f, GetParam() + " sequence " + std::to_string(s));
  }
}

TEST_P(TapeOracle, Int4CheckpointsOfOthersGiveTheirLogProbs) {
  for (const auto& [variant, prefix] :
       {std::pair<std::string, std::string>{"int4_sym7", "sym7."}, {"int4_llmcompressor", "ct."}}) {
    if (!std::filesystem::exists(OracleModel(GetParam()).root / variant)) continue;
    OracleModel model(GetParam(), variant);
    EXPECT_TRUE(model.weights->plan().any());
    for (int s = 0; s < model.num_sequences(); ++s) {
      const std::string key = prefix + "seq" + std::to_string(s) + ".logprobs_fp32";
      if (!model.io.contains(key) || model.ids(s).size() < 2) continue;
      expect_close(model.log_probs(s), model.floats(key), 5e-5f, key);
    }
  }
}

TEST_P(TapeOracle, Bfloat16ActivationsStayWithinTheFieldsGap) {
  OracleModel model(GetParam());
  const bool moe = model.spec.config.num_moe_layers() > 0;
  for (int s = 0; s < model.num_sequences(); ++s) {
    if (model.ids(s).size() < 10) continue;
    const auto got = model.log_probs(s, ActivationType::kBfloat16);
    const auto want = model.floats("seq" + std::to_string(s) + ".logprobs_fp32");
    double mean = 0.0;
    double worst = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
      mean += std::fabs(got[i] - want[i]) / static_cast<double>(got.size());
      worst = std::max(worst, static_cast<double>(std::fabs(got[i] - want[i])));
    }
    EXPECT_GT(mean, 0.0) << "rounding changes something";
    EXPECT_LT(mean, moe ? 0.05 : 0.02);
    if (!moe) {
      EXPECT_LT(worst, 0.15);
    }
  }
}

TEST_P(TapeOracle, RoutesMatchTransformers) {
  OracleModel model(GetParam());
  const at::NoGradGuard no_grad;
  const int64_t k = model.spec.config.moe.top_k;
  for (int s = 0; s < model.num_sequences() && k > 0; ++s) {
    const SequenceGroup whole{model.ids(s), {}};
    const PackedBatch batch = pack_groups(std::span(&whole, 1));
    TapeExecutor run(model.spec, *model.weights, model.rope, {batch});
    run_decoder(run, model.spec);
    size_t moe_layer = 0;
    for (int64_t layer = 0; layer < model.spec.config.num_layers; ++layer) {
      if (!model.spec.config.layer_is_moe[static_cast<size_t>(layer)]) continue;
      const TensorView want = model.io.tensor("seq" + std::to_string(s) + ".layer" +
                                              std::to_string(layer) + ".topk_indices");
      const at::Tensor got = run.routes()[moe_layer++];
      for (int64_t t = 0; t < got.size(0); ++t) {
        std::set<int64_t> ours, theirs;
        for (int64_t i = 0; i < k; ++i) {
          ours.insert(got.const_data_ptr<int32_t>()[t * k + i]);
          theirs.insert(want.dtype == DType::kI64 ? want.as<int64_t>()[t * k + i]
                                                  : want.as<int32_t>()[t * k + i]);
        }
        ASSERT_EQ(ours, theirs) << "sequence " << s << " layer " << layer << " token " << t;
      }
    }
  }
}

void expect_gradient(const float* got, const std::vector<float>& want, const std::string& what) {
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  EXPECT_GT(norm, 0.0) << what;
  EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(norm)) << what;
}

// d(-sum of all log-probabilities)/d(weights), against grad.NAME or sym7.grad.NAME.
void expect_gradients(OracleModel& model, const std::string& prefix) {
  model.weights->enable_gradients();
  double loss = 0.0;
  for (int s = 0; s < model.num_sequences(); ++s) {
    if (model.ids(s).size() < 2) continue;
    const PackedBatch batch = pack_sequence(model.ids(s));
    const TapeResult result = run_log_probs(model.spec, *model.weights, model.rope, {batch}, 1.0f,
                                            ActivationType::kFloat32);
    const at::Tensor negative = result.log_prob.sum().neg();
    loss += negative.item<double>();
    negative.backward();
  }
  EXPECT_GT(loss, 0.0);
  int checked = 0;
  double total = 0.0;
  for (int64_t p = 0; p < model.spec.table.size(); ++p) {
    const ParameterSpec& parameter = model.spec.table.at(p);
    const float* got = model.weights->grad(p);
    for (int64_t i = 0; i < parameter.num_elements(); ++i) {
      total += static_cast<double>(got[i]) * static_cast<double>(got[i]);
    }
    // The fixture keeps a few gradients whole, and the norm over all of them.
    if (!model.io.contains(prefix + parameter.name())) continue;
    expect_gradient(got, model.floats(prefix + parameter.name()), prefix + parameter.name());
    ++checked;
  }
  EXPECT_GE(checked, 3);
  const Json cases = read_json_file(model.root.parent_path() / "cases.json");
  for (const Json& info : cases) {
    if (info["name"] != model.name) continue;
    const Json& stats = info["stats"][prefix == "grad." ? "grad" : "sym7_grad_ste"];
    EXPECT_NEAR(loss / stats["loss"].get<double>(), 1.0, 1e-6);
    EXPECT_NEAR(std::sqrt(total) / stats["global_grad_norm"].get<double>(), 1.0, 1e-5);
  }
}

TEST_P(TapeOracle, GradientsMatchTransformers) {
  OracleModel model(GetParam());
  expect_gradients(model, "grad.");
}

TEST_P(TapeOracle, StraightThroughGradientsMatchTransformers) {
  OracleModel model(GetParam(), "int4_sym7");
  expect_gradients(model, "sym7.grad.");
}

TEST_P(TapeOracle, QuantizingTheBf16CheckpointGivesTheInt4CheckpointsBytes) {
  OracleModel bf16(GetParam());
  OracleModel int4(GetParam(), "int4_sym7");
  const kernels::Serial serial;
  const auto made =
      load_weights_quantized(bf16.directory, bf16.spec.table, int4.weights->plan(), serial);
  for (int64_t p = 0; p < bf16.spec.table.size(); ++p) {
    EXPECT_EQ(made->stored(p).words, int4.weights->stored(p).words) << bf16.spec.table.at(p).module;
    EXPECT_EQ(made->stored(p).scale, int4.weights->stored(p).scale);
    EXPECT_EQ(made->stored(p).bf16, int4.weights->stored(p).bf16);
  }
}

TEST_P(TapeOracle, ReplayedRoutesMatchTransformers) {
  OracleModel model(GetParam());
  const std::string key = "replay.logprobs_fp32";
  if (!model.io.contains(key)) return;  // a dense model
  model.weights->enable_gradients();
  const auto ids = model.ids(model.num_sequences() - 1);
  const int64_t k = model.spec.config.moe.top_k;
  const PackedBatch batch = pack_sequence(ids);
  TapeInputs inputs{batch};
  for (int64_t layer = 0; layer < model.spec.config.num_layers; ++layer) {
    if (!model.spec.config.layer_is_moe[static_cast<size_t>(layer)]) continue;
    const TensorView want = model.io.tensor("replay.layer" + std::to_string(layer) + ".indices");
    at::Tensor route =
        at::empty({static_cast<int64_t>(ids.size()) - 1, k}, at::TensorOptions().dtype(at::kInt));
    for (int64_t i = 0; i < route.numel(); ++i) {
      route.data_ptr<int32_t>()[i] = want.dtype == DType::kI64
                                         ? static_cast<int32_t>(want.as<int64_t>()[i])
                                         : want.as<int32_t>()[i];
    }
    inputs.replay.push_back(route);
  }
  const TapeResult result =
      run_log_probs(model.spec, *model.weights, model.rope, inputs, 1.0f, ActivationType::kFloat32);
  expect_close({result.log_prob.data_ptr<float>(),
                result.log_prob.data_ptr<float>() + result.log_prob.numel()},
               model.floats(key), 5e-5f, key);
  result.log_prob.sum().neg().backward();
  for (const LayerParameters& layer : model.spec.table.layers) {
    if (layer.router < 0) continue;
    const std::string gradient = "replay.grad." + model.spec.table.at(layer.router).name();
    expect_gradient(model.weights->grad(layer.router), model.floats(gradient), gradient);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TapeOracle, ::testing::ValuesIn(oracle_names()),
                         [](const auto& param) { return param.param; });

TEST(LlamaConfigV4, GivesTheSameModel) {
  OracleModel model("llama_smol");
  const ModelConfig v4 = parse_model_config(read_json_file(model.root / "config_v4.json"), "v4");
  const auto before = model.log_probs(2);
  model.spec = make_model_spec(v4);
  EXPECT_EQ(model.log_probs(2), before);
}

}  // namespace
}  // namespace nibble
