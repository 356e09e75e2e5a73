#include "core/spec/quantization.h"

#include <algorithm>
#include <set>

#include "core/base/fail.h"

namespace nibble {
namespace {

// A Linear module of the model that other engines know.
bool is_linear(ParameterRole role) {
  return role != ParameterRole::kEmbedding && role != ParameterRole::kNorm &&
         role != ParameterRole::kLoraA && role != ParameterRole::kLoraB;
}

bool can_be_quantized(ParameterRole role) {
  return role == ParameterRole::kAttention || role == ParameterRole::kMlp ||
         role == ParameterRole::kExpert;
}

bool is_target(ParameterRole role, QuantTargets targets) {
  switch (targets) {
    case QuantTargets::kExperts:
      return role == ParameterRole::kExpert;
    case QuantTargets::kMlp:
      return role == ParameterRole::kExpert || role == ParameterRole::kMlp;
    case QuantTargets::kLinear:
      return can_be_quantized(role);
  }
  return false;
}

void check_groups(const ParameterTable& table, const QuantizationPlan& plan) {
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& parameter = table.at(i);
    if (plan.quantized[static_cast<size_t>(i)] && parameter.cols % plan.config.group_size != 0) {
      fail(ErrorCode::kInvalidArgument,
           "tensor '{}': {} input features are not divisible by group size {}; choose a smaller "
           "group (32, 64, 128) or leave it out of the targets",
           parameter.name(), parameter.cols, plan.config.group_size);
    }
  }
}

void check_fused(const ParameterTable& table, const QuantizationPlan& plan, int64_t a, int64_t b) {
  if (plan.quantized[static_cast<size_t>(a)] != plan.quantized[static_cast<size_t>(b)]) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' and '{}' are shards of one fused layer: quantize both or ignore both",
         table.at(a).module, table.at(b).module);
  }
}

void check_all_fused(const ParameterTable& table, const QuantizationPlan& plan) {
  for (const LayerParameters& layer : table.layers) {
    check_fused(table, plan, layer.q, layer.k);
    check_fused(table, plan, layer.q, layer.v);
    if (layer.gate >= 0) check_fused(table, plan, layer.gate, layer.up);
    if (layer.first_expert < 0) continue;
    const int64_t last = table.at(layer.router).rows;
    for (int64_t e = 0; e < last; ++e) {
      check_fused(table, plan, layer.first_expert + 3 * e, layer.first_expert + 3 * e + 1);
    }
  }
}

// Engines serve a layer's experts as one layer and ask for the quantization of the first only:
// experts in BF16 beside packed ones would not be loaded.
void check_all_experts(const ParameterTable& table, const QuantizationPlan& plan) {
  for (const LayerParameters& layer : table.layers) {
    if (layer.first_expert < 0) continue;
    const int64_t end = layer.first_expert + 3 * table.at(layer.router).rows;
    for (int64_t i = layer.first_expert + 1; i < end; ++i)
      check_fused(table, plan, layer.first_expert, i);
  }
}

// The targets that the entries name. An entry without effect is a slip of the pen: refused.
std::set<std::string> left_out_modules(const ParameterTable& table, QuantTargets targets,
                                       const std::vector<std::string>& entries) {
  std::set<std::string> modules;
  for (const std::string& entry : entries) {
    check_ignore_entry(entry);
    const QuantizationConfig one{4, 32, {entry}};
    bool has_effect = false;
    for (const ParameterSpec& parameter : table.parameters) {
      if (!is_target(parameter.role, targets) || !one.ignores(parameter.module)) continue;
      modules.insert(parameter.module);
      has_effect = true;
    }
    if (!has_effect) {
      fail(ErrorCode::kInvalidArgument,
           "ignore entry '{}' matches nothing that would be quantized; give a full module name or "
           "an anchored pattern \"re:^...$\"",
           entry);
    }
  }
  return modules;
}

}  // namespace

QuantTargets parse_quant_targets(const std::string& text) {
  if (text == "experts") return QuantTargets::kExperts;
  if (text == "mlp") return QuantTargets::kMlp;
  if (text == "linear") return QuantTargets::kLinear;
  fail(ErrorCode::kInvalidArgument, "targets '{}' is unknown; use experts, mlp or linear", text);
}

QuantTargets default_targets(const ModelConfig& config) {
  return config.num_moe_layers() > 0 ? QuantTargets::kExperts : QuantTargets::kLinear;
}

bool QuantizationPlan::any() const {
  return std::find(quantized.begin(), quantized.end(), true) != quantized.end();
}

QuantizationPlan plan_quantization(const ParameterTable& table, QuantTargets targets, int bits,
                                   int64_t group_size,
                                   const std::vector<std::string>& also_ignore) {
  QuantizationPlan plan{{bits, group_size, {}}, {}};
  const std::set<std::string> left_out = left_out_modules(table, targets, also_ignore);
  bool has_head = false;
  for (const ParameterSpec& parameter : table.parameters) {
    const bool quantized =
        is_target(parameter.role, targets) && !left_out.contains(parameter.module);
    plan.quantized.push_back(quantized);
    if (!quantized && is_linear(parameter.role)) plan.config.ignore.push_back(parameter.module);
    has_head = has_head || parameter.role == ParameterRole::kLmHead;
  }
  // With tied embeddings lm_head is still a Linear module to the other loaders.
  if (!has_head) plan.config.ignore.emplace_back("lm_head");
  check_groups(table, plan);
  if (!left_out.empty()) {
    check_all_fused(table, plan);
    check_all_experts(table, plan);
  }
  return plan;
}

QuantizationPlan plan_from_config(const ParameterTable& table, const QuantizationConfig& config) {
  QuantizationPlan plan{config, {}};
  for (const ParameterSpec& parameter : table.parameters) {
    const bool listed = is_linear(parameter.role) && !config.ignores(parameter.module);
    if (listed && !can_be_quantized(parameter.role)) {
      fail(ErrorCode::kUnimplemented,
           "quantization_config does not ignore '{}'; Nibble keeps router and lm_head in BF16: add "
           "it to `ignore`",
           parameter.module);
    }
    plan.quantized.push_back(listed);
  }
  check_groups(table, plan);
  check_all_fused(table, plan);
  return plan;
}

OrderedJson served_config(const Json& model_config, const QuantizationPlan& plan) {
  OrderedJson config = OrderedJson::parse(model_config.dump());
  config.erase("quantization_config");
  if (plan.any()) config["quantization_config"] = quantization_config_json(plan.config);
  return config;
}

QuantizationPlan plan_bf16(const ParameterTable& table) {
  return {{}, std::vector<bool>(table.parameters.size(), false)};
}

}  // namespace nibble
