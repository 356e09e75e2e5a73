#include "core/checkpoint/quantization_config.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace nibble {
namespace {

const std::filesystem::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";

TEST(QuantizationConfig, ReadsWhatLlmCompressorWrites) {
  const Json config = read_json_file(kModels / "dense_tied" / "int4_llmcompressor" / "config.json");
  const auto parsed = parse_quantization_config(config, "config.json");
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->bits, 4);
  EXPECT_EQ(parsed->group_size, 128);
  EXPECT_TRUE(parsed->ignores("lm_head"));
  EXPECT_FALSE(parsed->ignores("model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(
      parse_quantization_config(read_json_file(kModels / "dense_tied/bf16/config.json"), "x"));
}

TEST(QuantizationConfig, WhatWeWriteReadsBackEqual) {
  const QuantizationConfig config{4, 64, {"lm_head", "re:^model\\.layers\\.[0-9]+\\.mlp\\.gate$"}};
  const Json stored = {
      {"quantization_config", Json::parse(quantization_config_json(config).dump())}};
  EXPECT_EQ(parse_quantization_config(stored, "x"), config);
  EXPECT_TRUE(config.ignores("model.layers.12.mlp.gate"));
  EXPECT_FALSE(config.ignores("model.layers.12.mlp.gate_proj"));
}

TEST(QuantizationConfig, OtherSchemesAreRefusedByField) {
  Json base = {
      {"quantization_config", Json::parse(quantization_config_json({4, 32, {"lm_head"}}).dump())}};
  const auto refused = [&](const Json::json_pointer& at, const Json& value) {
    Json changed = base;
    changed["quantization_config"][at] = value;
    EXPECT_THROW(parse_quantization_config(changed, "config.json"), Error) << at.to_string();
  };
  using P = Json::json_pointer;
  refused(P("/quant_method"), "awq");
  refused(P("/format"), "marlin-24");
  refused(P("/config_groups/group_0/weights/symmetric"), false);
  refused(P("/config_groups/group_0/weights/num_bits"), 3);
  refused(P("/config_groups/group_0/weights/group_size"), 48);
  refused(P("/config_groups/group_0/weights/strategy"), "channel");
  refused(P("/config_groups/group_0/weights/actorder"), "group");
  refused(P("/config_groups/group_0/input_activations"), {{"num_bits", 8}});
  refused(P("/kv_cache_scheme"), {{"num_bits", 8}});
  refused(P("/transform_config"), {{"config_groups", {{"R1", {{"type", "hadamard"}}}}}});
  refused(P("/is_rotated"), true);
  refused(P("/config_groups/group_0/format"), "int-quantized");
  refused(P("/config_groups/group_0/smoothing"), 0.5);
  refused(P("/config_groups/group_0/weights/scale_dtype"), "torch.float8_e4m3fn");
  refused(P("/config_groups/group_0/weights/codebook"), "nf4");
  for (const char* key : {"transform_config", "sparsity_config"}) {
    base["quantization_config"][key] = Json::object();
  }
  base["quantization_config"]["version"] = "0.12.0";
  base["quantization_config"]["config_groups"]["group_0"]["weights"]["scale_dtype"] = nullptr;
  EXPECT_NO_THROW(parse_quantization_config(base, "config.json"));
}

TEST(QuantizationConfig, AnIgnorePatternMatchesAtTheStartInPythonsSyntaxAndEnds) {
  const QuantizationConfig config{4, 32, {R"(re:(?P<part>model\.layers)\.\d+\.mlp)", "re:.*head"}};
  EXPECT_TRUE(config.ignores("model.layers.3.mlp.up_proj"));
  EXPECT_TRUE(config.ignores("lm_head"));
  EXPECT_FALSE(config.ignores("vision.model.layers.3.mlp"));
  const QuantizationConfig endless{4, 32, {"re:(a|aa)*[bc]"}};
  EXPECT_THROW((void)endless.ignores(std::string(200, 'a')), Error);
}

TEST(QuantizationConfig, AnIgnorePatternThatIsNoPatternIsRefusedByName) {
  const QuantizationConfig config{4, 32, {"re:^(unclosed"}};
  const Json stored = {
      {"quantization_config", Json::parse(quantization_config_json(config).dump())}};
  try {
    parse_quantization_config(stored, "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("re:^(unclosed"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
