// Against llm-compressor and a float64 GPTQ (oracles/gptq).
#include "convert/gptq.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>

#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/ops/bf16_cpu_backend.h"

namespace nibble {
namespace {

const std::filesystem::path kFixtures = NIBBLE_SOURCE_DIR "/tests/oracles/gptq";

at::Tensor tensor_of(const TensorView& view, at::ScalarType type) {
  return at::from_blob(const_cast<std::byte*>(view.bytes.data()), {view.shape[0], view.shape[1]},
                       at::TensorOptions().dtype(type))
      .clone();
}

// |(W - W') X^T|^2, in float64.
double error_of(const at::Tensor& weight, const at::Tensor& rounded, const at::Tensor& x) {
  const at::Tensor delta = weight.to(at::kDouble).sub(rounded.to(at::kDouble));
  return at::mm(delta, x.to(at::kDouble).t()).square().sum().item<double>();
}

struct Case {
  explicit Case(const Json& info)
      : file(kFixtures / info["file"].get<std::string>()),
        weight(tensor_of(file.tensor("weight"), at::kBFloat16)),
        x(tensor_of(file.tensor("activations"), at::kBFloat16)) {
    const at::Tensor activations = x.to(at::kFloat);
    gram = at::zeros({x.size(1), x.size(1)}, at::kFloat);
    ops::statistics_cpu_backend().add_gram(activations, gram);
    gram = gram.triu().add(gram.triu(1).t());
    options.group_size = info["group"];
    options.dampening = info["damp"];
    options.act_order = info["actorder"].is_string();
  }
  at::Tensor scale_of(kernels::ScaleSearch search) const {
    return matrix_scales(weight, options, search, gram.diagonal().contiguous(), ops::cpu_backend());
  }
  GptqResult quantize(const at::Tensor& scale) const {
    return quantize_gptq(weight, scale, gram, factor_gram(gram, options), options,
                         ops::cpu_backend());
  }

  SafetensorsFile file;
  at::Tensor weight, x, gram;
  GptqOptions options;
};

TEST(Gptq, ErrorIsTheReferencesOnBothGrids) {
  for (const Json& info : read_json_file(kFixtures / "cases.json")) {
    Case it(info);
    const auto check = [&](const char* prefix, const char* limit, const char* nearest) {
      SCOPED_TRACE(info["name"].get<std::string>() + " " + prefix);
      const at::Tensor scale = it.scale_of(kernels::ScaleSearch::kNone);
      const at::Tensor wanted =
          tensor_of(it.file.tensor(std::string(prefix) + ".weight_scale"), at::kBFloat16);
      EXPECT_TRUE(scale.equal(wanted));
      const QuantizedMatrix rounded = quantize_nearest(it.weight, scale, it.options);
      EXPECT_TRUE(
          rounded.code.equal(tensor_of(it.file.tensor(std::string(prefix) + ".q_rtn"), at::kChar)));
      const GptqResult result = it.quantize(scale);
      const double error = error_of(it.weight, result.matrix.rounded, it.x);
      EXPECT_NEAR(result.output_error / error, 1.0, 1e-3);
      EXPECT_LE(error, info[limit].get<double>());
      EXPECT_LE(error, 0.35 * info["error"][nearest].get<double>());
    };
    it.options.grid = quant::Grid::kSym7;
    check("sym7", "limit_sym7", "sym7_rtn");
    it.options.grid = quant::Grid::kSym7p5;
    check("ct", "limit_ct", "ct_rtn");
  }
}

TEST(Gptq, OutputErrorIsThatOfTheActivations) {
  for (const Json& info : read_json_file(kFixtures / "cases.json")) {
    const Case it(info);
    const at::Tensor scale = it.scale_of(kernels::ScaleSearch::kNone);
    const QuantizedMatrix rounded = quantize_nearest(it.weight, scale, it.options);
    const double measured =
        output_error(it.weight.to(at::kFloat).sub(rounded.rounded.to(at::kFloat)), it.gram);
    EXPECT_NEAR(measured / error_of(it.weight, rounded.rounded, it.x), 1.0, 1e-3);
  }
}

TEST(Gptq, SearchedScalesLowerTheErrorOfRounding) {
  double plain = 0.0, searched = 0.0;
  for (const Json& info : read_json_file(kFixtures / "cases.json")) {
    const Case it(info);
    const auto error_with = [&](kernels::ScaleSearch search) {
      const QuantizedMatrix out = quantize_nearest(it.weight, it.scale_of(search), it.options);
      return error_of(it.weight, out.rounded, it.x) / info["out_energy"].get<double>();
    };
    plain += error_with(kernels::ScaleSearch::kNone);
    searched += error_with(kernels::ScaleSearch::kMse);
  }
  EXPECT_LT(searched, 0.95 * plain);
}

TEST(Gptq, DeadColumnsBecomeZero) {
  for (const Json& info : read_json_file(kFixtures / "cases.json")) {
    const Case it(info);
    const at::Tensor code = it.quantize(it.scale_of(kernels::ScaleSearch::kNone)).matrix.code;
    for (const Json& column : info["dead"]) {
      EXPECT_EQ(code.select(1, column.get<int64_t>()).abs().max().item<int>(), 0);
    }
  }
}

TEST(Gptq, AGramThatCannotBeFactoredIsRecoveredFromAndSaidSo) {
  const int64_t cols = 64;
  GptqOptions options;
  // One eigenvalue is below zero by more than one percent of the mean of the diagonal.
  at::Tensor gram = at::zeros({cols, cols}, at::kFloat);
  gram.diagonal().fill_(1.0f);
  gram[0][1] = gram[1][0] = 1.05f;
  GptqFactor factor = factor_gram(gram, options);
  EXPECT_EQ(factor.recovery, Recovery::kDampening);
  EXPECT_GT(factor.dampening, options.dampening);

  // Dampening up to the mean is too little for this pair of channels, a floor under them is not.
  gram.diagonal().slice(0, 0, 2).fill_(1e-6f);
  gram[0][1] = gram[1][0] = 1.5f;
  factor = factor_gram(gram, options);
  EXPECT_EQ(factor.recovery, Recovery::kDiagonalFloor);

  gram[0][0] = std::numeric_limits<float>::quiet_NaN();
  factor = factor_gram(gram, options);
  EXPECT_EQ(factor.recovery, Recovery::kRoundToNearest);
  const at::Tensor weight = at::randn({8, cols}).to(at::kBFloat16);
  const at::Tensor scale =
      matrix_scales(weight, options, kernels::ScaleSearch::kNone, {}, ops::cpu_backend());
  EXPECT_TRUE(quantize_gptq(weight, scale, gram, factor, options, ops::cpu_backend())
                  .matrix.code.equal(quantize_nearest(weight, scale, options).code));
}

}  // namespace
}  // namespace nibble
