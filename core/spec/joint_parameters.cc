#include "core/spec/joint_parameters.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

bool is_divided(const ParameterTable& table, int64_t group_size) {
  return std::all_of(table.parameters.begin(), table.parameters.end(), [&](const auto& parameter) {
    const bool is_matrix = parameter.role == ParameterRole::kAttention ||
                           parameter.role == ParameterRole::kMlp ||
                           parameter.role == ParameterRole::kExpert;
    return !is_matrix || parameter.cols % group_size == 0;
  });
}

}  // namespace

JointParameters join_parameters(const ParameterTable& table, const QuantizationPlan& plan,
                                const DraftPart* draft) {
  JointParameters joint{table, plan};
  if (draft == nullptr) return joint;
  if (!plan.any()) joint.plan.config = draft->plan.config;
  for (ParameterSpec parameter : model_parameters(draft->config).parameters) {
    parameter.module = "draft." + parameter.module;
    parameter.is_draft = parameter.is_frozen = true;
    parameter.layer = -1;  // none of the model's
    joint.table.parameters.push_back(std::move(parameter));
  }
  joint.plan.quantized.insert(joint.plan.quantized.end(), draft->plan.quantized.begin(),
                              draft->plan.quantized.end());
  return joint;
}

QuantizationPlan draft_plan(const ModelConfig& draft, const QuantizationPlan& stored,
                            const QuantizationPlan& serve) {
  const ParameterTable table = model_parameters(draft);
  constexpr int kBits = 4;
  // A checkpoint of 8 bits is read as the BF16 weights that it stands for.
  if (!stored.any() || stored.config.bits != kBits) {
    if (!serve.any() || !is_divided(table, serve.config.group_size)) return plan_bf16(table);
    return plan_quantization(table, default_targets(draft), kBits, serve.config.group_size);
  }
  if (serve.any() && stored.config.group_size != serve.config.group_size) {
    fail(ErrorCode::kInvalidArgument,
         "the draft model is quantized in groups of {}, the model that it guesses for in groups of "
         "{}; both are published in one format: convert the draft model with --quant-group-size "
         "{}, or "
         "name its BF16 checkpoint",
         stored.config.group_size, serve.config.group_size, serve.config.group_size);
  }
  return stored;
}

}  // namespace nibble
