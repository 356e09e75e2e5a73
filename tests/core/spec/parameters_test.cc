#include "core/spec/parameters.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "core/base/error.h"
#include "core/checkpoint/hf_directory.h"
#include "core/spec/quantization.h"

namespace nibble {
namespace {

const std::filesystem::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";
constexpr const char* kNames[] = {"dense_untied", "dense_tied", "moe_norm",
                                  "moe_nonorm",   "moe_mixed",  "llama_smol"};

TEST(ModelParameters, AreExactlyTheTensorsTransformersSaved) {
  for (const char* name : kNames) {
    const HfDirectory model(kModels / name / "bf16");
    const ParameterTable table = model_parameters(parse_model_config(model.config(), name));
    std::set<std::string> ours;
    for (const ParameterSpec& parameter : table.parameters) {
      const std::vector<int64_t> shape = parameter.is_vector()
                                             ? std::vector{parameter.cols}
                                             : std::vector{parameter.rows, parameter.cols};
      EXPECT_NO_THROW(model.tensor(parameter.name(), DType::kBf16, shape));
      ours.insert(parameter.name());
    }
    std::set<std::string> theirs;
    for (const TensorInfo& info : model.tensors()) theirs.insert(info.name);
    EXPECT_EQ(ours, theirs) << name;
  }
}

TEST(ValueModel, IsTheDecoderWithAHeadOfOneRowThatIsNeverTied) {
  for (const char* name : kNames) {
    const ModelConfig body = parse_model_config(read_hf_config(kModels / name / "bf16"), name);
    const ParameterTable model = model_parameters(body),
                         critic = model_parameters(value_model(body));
    ASSERT_EQ(critic.size(), model.size() + (body.tied_embeddings ? 1 : 0));
    const ParameterSpec& head = critic.at(critic.lm_head);
    EXPECT_EQ(critic.lm_head, critic.size() - 1);
    EXPECT_EQ(head.name(), "score.weight");
    EXPECT_EQ(std::pair(head.rows, head.cols), std::pair(int64_t{1}, body.hidden));
    EXPECT_FALSE(head.is_vector()) << "it is decayed";
    for (int64_t p = 0; p < critic.lm_head; ++p) {
      EXPECT_EQ(critic.at(p).name(), model.at(p).name());
      EXPECT_EQ(critic.at(p).num_elements(), model.at(p).num_elements());
    }
  }
}

TEST(ModelParameters, AdaptersStandBehindAModelWhosePlacesStay) {
  for (const char* name : kNames) {
    ModelConfig config = parse_model_config(HfDirectory(kModels / name / "bf16").config(), name);
    const ParameterTable base = model_parameters(config);
    for (const LoraTargets targets :
         {LoraTargets::kAttention, LoraTargets::kMlp, LoraTargets::kLinear}) {
      config.lora = LoraShape{32, 16.0, targets};
      const ParameterTable table = model_parameters(config);
      int64_t next = base.size();
      for (int64_t p = 0; p < base.size(); ++p) {
        const ParameterSpec& matrix = table.at(p);
        EXPECT_EQ(matrix.module, base.at(p).module);
        EXPECT_TRUE(matrix.is_frozen);
        const bool is_attention = matrix.role == ParameterRole::kAttention;
        const bool is_mlp = matrix.role == ParameterRole::kMlp;
        const bool wanted = (is_attention && targets != LoraTargets::kMlp) ||
                            (is_mlp && targets != LoraTargets::kAttention);
        const AdapterParameters adapter = table.adapter_of(p);
        ASSERT_EQ(adapter.exists(), wanted) << matrix.module;
        if (!wanted) continue;
        EXPECT_EQ(adapter.a, next++);
        EXPECT_EQ(adapter.b, next++);
        const ParameterSpec &a = table.at(adapter.a), &b = table.at(adapter.b);
        EXPECT_EQ(a.name(), matrix.module + ".lora_A.weight");
        EXPECT_EQ(b.name(), matrix.module + ".lora_B.weight");
        EXPECT_EQ(std::tuple(a.rows, a.cols, a.layer), std::tuple(32, matrix.cols, matrix.layer));
        EXPECT_EQ(std::tuple(b.rows, b.cols, b.layer), std::tuple(matrix.rows, 32, matrix.layer));
        EXPECT_FALSE(a.is_frozen || b.is_frozen || table.adapter_of(adapter.a).exists());
      }
      EXPECT_EQ(table.size(), next);
      EXPECT_EQ(table.lm_head, base.lm_head);
    }
  }
}

TEST(ModelParameters, AdaptersAreNeitherQuantizedNorInAnIgnoreList) {
  ModelConfig config =
      parse_model_config(HfDirectory(kModels / "moe_mixed" / "bf16").config(), "m");
  const ParameterTable base = model_parameters(config);
  const QuantizationPlan want = plan_quantization(base, QuantTargets::kLinear, 4, 32);
  config.lora = LoraShape{32, 16.0, LoraTargets::kLinear};
  const ParameterTable table = model_parameters(config);
  for (const QuantizationPlan& plan : {plan_quantization(table, QuantTargets::kLinear, 4, 32),
                                       plan_from_config(table, want.config)}) {
    EXPECT_EQ(plan.config.ignore, want.config.ignore);
    for (int64_t p = 0; p < table.size(); ++p) {
      EXPECT_EQ(plan.quantized[static_cast<size_t>(p)],
                p < base.size() && want.quantized[static_cast<size_t>(p)]);
    }
  }
}

TEST(LoraShapeJson, IsReadAsItWasWrittenAndRefusedByField) {
  const LoraShape shape{64, 24.5, LoraTargets::kAttention};
  const auto read = [](const OrderedJson& json) {
    return parse_lora_shape(parse_json(json.dump(), "c"), "c");
  };
  EXPECT_EQ(read(lora_shape_json(shape)), shape);
  EXPECT_EQ(LoraShape({64, 32.0}).scale(), 0.5f);
  const std::pair<const char*, OrderedJson> wrong[] = {
      {"rank", 48}, {"rank", 0},     {"rank", "64"},         {"rank", 8192},
      {"alpha", 0}, {"alpha", "16"}, {"targets", "experts"}, {"targets", 1}};
  for (const auto& [field, value] : wrong) {
    OrderedJson json = lora_shape_json(shape);
    json[field] = value;
    try {
      read(json);
      FAIL() << json.dump();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(std::string("nibble_lora.") + field),
                std::string::npos)
          << error.what();
    }
  }
}

TEST(QuantizationPlan, MatchesTheTensorsAndIgnoreListOfTheFixtures) {
  for (const char* name : kNames) {
    const HfDirectory model(kModels / name / "int4_sym7");
    const ModelConfig config = parse_model_config(model.config(), name);
    const ParameterTable table = model_parameters(config);
    const auto stated = parse_quantization_config(model.config(), name);
    ASSERT_TRUE(stated.has_value());
    const QuantizationPlan read = plan_from_config(table, *stated);
    const QuantizationPlan made =
        plan_quantization(table, default_targets(config), 4, stated->group_size);
    EXPECT_EQ(read.quantized, made.quantized) << name;
    EXPECT_EQ(made.config.ignore, stated->ignore) << name;
    for (int64_t i = 0; i < table.size(); ++i) {
      EXPECT_EQ(read.quantized[static_cast<size_t>(i)],
                model.contains(table.at(i).module + ".weight_packed"))
          << table.at(i).module;
    }
  }
}

TEST(QuantizationPlan, GroupThatDoesNotDivideNamesTheTensor) {
  const HfDirectory model(kModels / "llama_smol" / "bf16");
  const ParameterTable table = model_parameters(parse_model_config(model.config(), "x"));
  try {
    plan_quantization(table, QuantTargets::kLinear, 4, 128);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("q_proj"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("96"), std::string::npos);
  }
}

TEST(QuantizationPlan, HalfQuantizedFusedLayerIsRefused) {
  const HfDirectory model(kModels / "dense_tied" / "bf16");
  const ParameterTable table = model_parameters(parse_model_config(model.config(), "x"));
  QuantizationConfig config{4, 32, {"lm_head", "model.layers.1.mlp.up_proj"}};
  EXPECT_THROW(plan_from_config(table, config), Error);
  config.ignore.push_back("re:model\\.layers\\.1\\.mlp\\.gate_proj$");
  EXPECT_NO_THROW(plan_from_config(table, config));
}

TEST(QuantizationPlan, WhatIsAlsoIgnoredIsListedByFullNameAndNeedNotDivide) {
  const HfDirectory model(kModels / "llama_smol" / "bf16");  // 96 inputs; down_proj has another
  const ParameterTable table = model_parameters(parse_model_config(model.config(), "x"));
  const auto plan = plan_quantization(table, QuantTargets::kLinear, 4, 32,
                                      {R"(re:^model\.layers\.[01]\.mlp\..*$)"});
  EXPECT_EQ(plan_from_config(table, plan.config).quantized, plan.quantized);
  for (const std::string& entry : plan.config.ignore) EXPECT_FALSE(entry.starts_with("re:"));
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    const bool is_target = p.role == ParameterRole::kAttention || p.role == ParameterRole::kMlp;
    const bool is_left_out = p.role == ParameterRole::kMlp && p.layer < 2;
    EXPECT_EQ(plan.quantized[static_cast<size_t>(i)], is_target && !is_left_out) << p.module;
  }
  EXPECT_NO_THROW(plan_quantization(table, QuantTargets::kLinear, 4, 128,
                                    {R"(re:^model\.layers\..*\.(self_attn|mlp)\..*$)"}));
}

TEST(QuantizationPlan, AnIgnoreEntryThatDoesNothingOrHalfOfAFusedLayerIsRefused) {
  const HfDirectory model(kModels / "dense_tied" / "bf16");
  const ParameterTable table = model_parameters(parse_model_config(model.config(), "x"));
  for (const char* entry : {"model.layers.9.mlp.up_proj", "lm_head", "re:^(", "re:^nothing$",
                            "model.layers.0.mlp.up_proj"}) {
    EXPECT_THROW(plan_quantization(table, QuantTargets::kLinear, 4, 32, {entry}), Error) << entry;
  }
}

TEST(QuantizationPlan, ExpertsOfALayerAreLeftOutTogetherOrNotAtAll) {
  const HfDirectory model(kModels / "moe_norm" / "bf16");
  const ParameterTable table = model_parameters(parse_model_config(model.config(), "x"));
  for (const char* entry : {R"(re:^.*\.experts\.0\..*$)", R"(re:^.*\.experts\.7\..*$)",
                            R"(re:^.*\.experts\.\d\.down_proj$)"}) {
    EXPECT_THROW(plan_quantization(table, QuantTargets::kExperts, 4, 32, {entry}), Error) << entry;
  }
  const auto plan = plan_quantization(table, QuantTargets::kExperts, 4, 32,
                                      {R"(re:^model\.layers\.0\.mlp\.experts\..*$)"});
  EXPECT_EQ(plan_from_config(table, plan.config).quantized, plan.quantized);
}

}  // namespace
}  // namespace nibble
