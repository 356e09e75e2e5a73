#include "core/spec/model_config.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace nibble {
namespace {

const std::filesystem::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";

Json config_of(const std::string& name) {
  return read_json_file(kModels / name / "bf16" / "config.json");
}

void expect_refused(const Json& config, const std::string& field) {
  try {
    parse_model_config(config, "config.json");
    FAIL() << field << " was accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
    EXPECT_EQ(exit_code(error.code()), 2);
  }
}

TEST(ModelConfig, ReadsTransformers4And5LayoutsAlike) {
  const ModelConfig v5 = parse_model_config(config_of("llama_smol"), "x");
  const ModelConfig v4 =
      parse_model_config(read_json_file(kModels / "llama_smol" / "config_v4.json"), "x");
  EXPECT_EQ(v4.rope.theta, v5.rope.theta);
  EXPECT_EQ(v4.head_dim, v5.head_dim);
  EXPECT_EQ(v4.head_dim, 32);
  EXPECT_FALSE(v4.qk_norm);
}

TEST(ModelConfig, SparseLayersFollowStepAndExceptions) {
  const ModelConfig config = parse_model_config(config_of("moe_mixed"), "x");
  EXPECT_EQ(config.layer_is_moe, (std::vector<bool>{false, true, false, false}));
  EXPECT_EQ(config.moe.num_experts, 8);
}

TEST(ModelConfig, WhatIsNotImplementedIsRefusedByName) {
  const auto with = [](const char* key, const Json& value) {
    Json config = config_of("dense_tied");
    config[key] = value;
    return config;
  };
  expect_refused(with("attention_bias", true), "attention_bias");
  expect_refused(with("hidden_act", "gelu"), "hidden_act");
  expect_refused(with("use_sliding_window", true), "use_sliding_window");
  expect_refused(with("rope_parameters", {{"rope_type", "yarn"}, {"factor", 4.0}}), "yarn");
  expect_refused(with("model_type", "gemma3"), "gemma3");
  expect_refused(with("attn_logit_softcapping", 30.0), "attn_logit_softcapping");
  expect_refused(with("auto_map", Json::object()), "auto_map");
  expect_refused(with("pretraining_tp", 2), "pretraining_tp");
  expect_refused(with("architectures", {"LlamaForCausalLM"}), "architectures");
  expect_refused(with("hidden_size", 0), "hidden_size");
  expect_refused(with("hidden_size", "big"), "hidden_size");
  expect_refused(with("num_key_value_heads", 3), "key-value heads");
  expect_refused(with("layer_types", {"sliding_attention"}), "layer_types");
  expect_refused(with("layer_types", {"full_attention", "full_attention", "sliding_attention"}),
                 "sliding_attention");
  Json llama_window = config_of("llama_smol");
  llama_window["sliding_window"] = 128;
  expect_refused(llama_window, "sliding_window");
}

TEST(ModelConfig, WhatComputesSomethingElseOfEqualWeightsIsNamed) {
  const auto difference = [](const char* model, const char* key, const Json& value) {
    Json changed = config_of(model);
    changed[key] = value;
    return computed_difference(parse_model_config(config_of(model), "a"),
                               parse_model_config(changed, "b"))
        .value_or("none");
  };
  EXPECT_EQ(difference("dense_tied", "max_position_embeddings", 77), "none");
  EXPECT_EQ(difference("dense_tied", "rms_norm_eps", 1e-3), "rms_norm_eps");
  EXPECT_EQ(difference("dense_tied", "tie_word_embeddings", false), "tie_word_embeddings");
  EXPECT_EQ(
      difference("dense_tied", "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 77.0}}),
      "rope_theta");
  EXPECT_EQ(difference("moe_norm", "norm_topk_prob", false), "norm_topk_prob");
  EXPECT_EQ(difference("moe_norm", "num_experts_per_tok", 1), "num_experts_per_tok");
  const ModelConfig llama3 = parse_model_config(config_of("llama_smol"), "a");
  ModelConfig other = llama3;
  other.rope.llama3 = !other.rope.llama3;
  EXPECT_EQ(computed_difference(llama3, other), "rope_scaling");
}

}  // namespace
}  // namespace nibble
