// Against shared fixtures: compressed-tensors and exact rational arithmetic (oracles/quant).
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/quant/pack.h"
#include "core/quant/rows.h"

namespace nibble::quant {
namespace {

const std::filesystem::path kFixtures = NIBBLE_SOURCE_DIR "/tests/oracles/quant";

struct Quantized {
  std::vector<uint16_t> scale;
  std::vector<int8_t> code;
};

Quantized quantize(const uint16_t* weight, const GroupShape& shape, Grid grid) {
  Quantized out{std::vector<uint16_t>(static_cast<size_t>(shape.rows * shape.groups_per_row())),
                std::vector<int8_t>(static_cast<size_t>(shape.rows * shape.cols))};
  const auto problem = quantize_rows(weight, shape, grid, out.scale.data(), out.code.data());
  EXPECT_FALSE(problem.has_value());
  return out;
}

template <typename T>
void expect_same_bytes(const std::vector<T>& got, const TensorView& want, const std::string& what) {
  ASSERT_EQ(got.size() * sizeof(T), want.bytes.size()) << what;
  EXPECT_EQ(std::memcmp(got.data(), want.bytes.data(), want.bytes.size()), 0) << what;
}

std::vector<uint16_t> bf16_values(const TensorView& view) {
  std::vector<uint16_t> values(view.bytes.size() / 2);
  std::memcpy(values.data(), view.bytes.data(), view.bytes.size());
  return values;
}

class QuantFixture : public ::testing::TestWithParam<Json> {};

TEST_P(QuantFixture, Sym7MatchesCompressedTensorsBitForBit) {
  const Json& info = GetParam();
  const SafetensorsFile file(kFixtures / info["file"].get<std::string>());
  const GroupShape shape{info["shape"][0], info["shape"][1], info["group"]};
  const auto weight = bf16_values(file.tensor("weight"));
  const Quantized got = quantize(weight.data(), shape, Grid::kSym7);
  expect_same_bytes(got.scale, file.tensor("sym7.weight_scale"), "scale");
  expect_same_bytes(got.code, file.tensor("sym7.q"), "q");
  std::vector<uint32_t> words(static_cast<size_t>(shape.rows * int4_row_words(shape.cols)));
  pack_rows(got.code.data(), shape.rows, shape.cols, 4, words.data());
  expect_same_bytes(words, file.tensor("sym7.weight_packed"), "packed");
  std::vector<uint16_t> dequant(weight.size());
  dequantize_rows(got.code.data(), got.scale.data(), shape, dequant.data());
  expect_same_bytes(dequant, file.tensor("sym7.dequant"), "dequant");
  const Quantized again = quantize(dequant.data(), shape, Grid::kSym7);
  EXPECT_EQ(again.scale, got.scale) << "idempotent";
  EXPECT_EQ(again.code, got.code) << "idempotent";
}

TEST_P(QuantFixture, Sym7p5MatchesTheFp32DivisionOfCompressedTensors) {
  const Json& info = GetParam();
  const SafetensorsFile file(kFixtures / info["file"].get<std::string>());
  if (!file.contains("ct4.q_fp32div")) return;  // the fixture has this grid for some cases only
  const GroupShape shape{info["shape"][0], info["shape"][1], info["group"]};
  const Quantized got = quantize(bf16_values(file.tensor("weight")).data(), shape, Grid::kSym7p5);
  expect_same_bytes(got.scale, file.tensor("ct4.weight_scale"), "scale");
  expect_same_bytes(got.code, file.tensor("ct4.q_fp32div"), "q");
}

// torch.where(scales == 0, eps, scales): of zeros, and of what rounds to zero.
TEST(Sym7p5, AScaleOfZeroBecomesTheEpsilon) {
  EXPECT_EQ(group_scale(0.0f, Grid::kSym7p5), kBf16Epsilon);
  EXPECT_EQ(group_scale(bf16_to_float(0x0001), Grid::kSym7p5), kBf16Epsilon);
  EXPECT_EQ(group_scale(bf16_to_float(0x0007), Grid::kSym7p5), 0x0001);
}

std::vector<Json> cases() {
  return read_json_file(kFixtures / "cases.json")["cases"].get<std::vector<Json>>();
}

INSTANTIATE_TEST_SUITE_P(All, QuantFixture, ::testing::ValuesIn(cases()), [](const auto& param) {
  return param.param["name"].template get<std::string>();
});

TEST(Pack, MatchesCompressedTensorsForFourAndEightBitsAndRaggedWidths) {
  const Json fixture = read_json_file(kFixtures / "cases.json");
  for (const Json& info : fixture["raw_pack"]) {
    const SafetensorsFile file(kFixtures / info["file"].get<std::string>());
    const int bits = info["bits"];
    const TensorView q = file.tensor("q");
    const int64_t rows = q.shape[0];
    const int64_t cols = q.shape[1];
    const int64_t row_words = bits == 4 ? int4_row_words(cols) : int8_row_words(cols);
    std::vector<uint32_t> words(static_cast<size_t>(rows * row_words));
    pack_rows(q.as<int8_t>(), rows, cols, bits, words.data());
    expect_same_bytes(words, file.tensor("weight_packed"), info["name"]);
    std::vector<int8_t> code(static_cast<size_t>(rows * cols));
    unpack_rows(words.data(), rows, cols, bits, code.data());
    expect_same_bytes(code, q, info["name"]);
  }
}

TEST(QuantizeRows, NonFiniteWeightsAndOverflowAreProblemsWithAPlace) {
  const SafetensorsFile file(kFixtures / "errors.safetensors");
  int seen = 0;
  const Json fixture = read_json_file(kFixtures / "cases.json");
  for (const Json& info : fixture["errors"]) {
    const GroupShape shape{info["shape"][0], info["shape"][1], info["group"]};
    if (shape.cols % shape.group != 0) continue;  // refused by name where the tensor is known
    const auto weight = bf16_values(file.tensor(info["tensor"].get<std::string>()));
    std::vector<uint16_t> scale(static_cast<size_t>(shape.rows * shape.groups_per_row()));
    std::vector<int8_t> code(weight.size());
    const auto problem =
        quantize_rows(weight.data(), shape, Grid::kSym7, scale.data(), code.data());
    ASSERT_TRUE(problem.has_value()) << info["name"];
    EXPECT_EQ(problem->kind == QuantizeProblem::Kind::kOverflow,
              info["name"] == "overflow_max_bf16");
    ++seen;
  }
  EXPECT_EQ(seen, 4);
}

}  // namespace
}  // namespace nibble::quant
