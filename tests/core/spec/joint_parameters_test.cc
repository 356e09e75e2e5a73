#include "core/spec/joint_parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/checkpoint/hf_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

const std::filesystem::path kModels =
    std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/oracles/models";

ModelConfig config_of(const std::string& name) {
  const std::filesystem::path directory = kModels / name / "bf16";
  return parse_model_config(read_hf_config(directory), name);
}

QuantizationPlan linear_plan(const ModelConfig& config, int64_t group_size) {
  return plan_quantization(model_parameters(config), QuantTargets::kLinear, 4, group_size);
}

TEST(JointParameters, ADraftModelComesBehindTheModelUnderNamesOfItsOwn) {
  const ModelConfig model = config_of("moe_norm"), small = config_of("dense_untied");
  const ParameterTable table = model_parameters(model), draft_table = model_parameters(small);
  const QuantizationPlan plan = plan_quantization(table, QuantTargets::kExperts, 4, 32);
  const DraftPart draft{kModels, small, linear_plan(small, 32)};
  const JointParameters joint = join_parameters(table, plan, &draft);
  ASSERT_EQ(joint.table.size(), table.size() + draft_table.size());
  ASSERT_EQ(joint.plan.quantized.size(), static_cast<size_t>(joint.table.size()));
  for (int64_t p = 0; p < joint.table.size(); ++p) {
    const ParameterSpec& parameter = joint.table.at(p);
    const bool is_draft = p >= table.size();
    const ParameterSpec& wanted = is_draft ? draft_table.at(p - table.size()) : table.at(p);
    EXPECT_EQ(parameter.is_draft, is_draft);
    EXPECT_EQ(parameter.name(), (is_draft ? "draft." : "") + wanted.name());
    EXPECT_EQ(parameter.num_elements(), wanted.num_elements());
    const auto& own = is_draft ? draft.plan.quantized : plan.quantized;
    EXPECT_EQ(joint.plan.quantized[static_cast<size_t>(p)],
              own[static_cast<size_t>(is_draft ? p - table.size() : p)]);
  }
  EXPECT_EQ(join_parameters(table, plan, nullptr).table.size(), table.size());
}

TEST(JointParameters, TheFormatIsTheModelsOrTheDraftModelsWhereOnlyThatIsQuantized) {
  const ModelConfig model = config_of("dense_untied");
  const ParameterTable table = model_parameters(model);
  const DraftPart draft{kModels, model, linear_plan(model, 64)};
  EXPECT_EQ(join_parameters(table, plan_bf16(table), &draft).plan.config.group_size, 64);
}

TEST(DraftPlan, FollowsTheModelUnlessTheDraftModelIsQuantizedAlready) {
  const ModelConfig model = config_of("dense_untied");
  const ParameterTable table = model_parameters(model);
  const QuantizationPlan plain = plan_bf16(table), stored = linear_plan(model, 32);
  QuantizationPlan wide = stored;
  wide.config.bits = 8;
  EXPECT_FALSE(draft_plan(model, plain, plain).any());
  EXPECT_FALSE(draft_plan(model, wide, plain).any());
  EXPECT_EQ(draft_plan(model, plain, linear_plan(model, 64)).config.group_size, 64);
  EXPECT_EQ(draft_plan(model, wide, linear_plan(model, 64)).config.bits, 4);
  const ModelConfig odd = config_of("llama_smol");  // 96 inputs
  const ParameterTable odd_table = model_parameters(odd);
  QuantizationPlan wide_groups = stored;
  wide_groups.config.group_size = 64;
  EXPECT_FALSE(draft_plan(odd, plan_bf16(odd_table), wide_groups).any());
  EXPECT_EQ(draft_plan(model, stored, plain).quantized, stored.quantized);
  EXPECT_EQ(draft_plan(model, stored, stored).quantized, stored.quantized);
  try {
    draft_plan(model, stored, linear_plan(model, 64));
    ADD_FAILURE() << "two formats in one publication";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), HasSubstr("groups of 32"));
    EXPECT_THAT(error.what(), HasSubstr("--quant-group-size 64"));
  }
}

}  // namespace
}  // namespace nibble
