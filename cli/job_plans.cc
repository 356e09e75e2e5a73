#include "cli/job_plans.h"

#include <algorithm>

#include "cli/job_kind.h"
#include "core/base/context.h"
#include "core/base/fail.h"
#include "core/checkpoint/hf_directory.h"
#include "core/models/weights.h"

namespace nibble {
namespace {

// A plan made for one model's parameters means nothing for another's, and the trainer runs the
// reference's weights through the model's own layers.
void check_same_model(const RunConfig& c, const ModelConfig& model, const ParameterTable& table,
                      const std::filesystem::path& directory, const std::filesystem::path& other) {
  const ModelConfig other_model = model_of(c, other);
  const ParameterTable theirs = model_parameters(other_model);
  for (int64_t i = 0; i < std::max(table.size(), theirs.size()); ++i) {
    const bool both = i < table.size() && i < theirs.size();
    if (both && table.at(i).module == theirs.at(i).module &&
        table.at(i).rows == theirs.at(i).rows && table.at(i).cols == theirs.at(i).cols) {
      continue;
    }
    fail(ErrorCode::kInvalidArgument,
         "'{}' and '{}' are different models: they differ from parameter '{}' on; model.path, "
         "model.int4 and model.reference must be of one model",
         directory.string(), other.string(), (i < table.size() ? table : theirs).at(i).name());
  }
  if (const auto field = computed_difference(model, other_model)) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' and '{}' differ in '{}' of config.json; model.path, model.int4 and model.reference "
         "must be of one model",
         directory.string(), other.string(), *field);
  }
}

DraftPart draft_part(const std::filesystem::path& directory, const QuantizationPlan& serve) {
  return with_context("rollout.draft_model", [&] {
    // Weights need not be there but where trainer rank 0 is.
    const Json json = read_hf_config(directory);
    const std::string name = (directory / "config.json").string();
    const ModelConfig model = parse_model_config(json, name);
    const QuantizationPlan stored = checkpoint_plan(json, name, model_parameters(model));
    return DraftPart{directory, model, draft_plan(model, stored, serve)};
  });
}

}  // namespace

std::filesystem::path quantization_source(const RunConfig& c) {
  return c.model.int4.empty() ? c.model.path : c.model.int4;
}

Json model_json(const RunConfig& c, const std::filesystem::path& directory) {
  const bool weightless = c.model.init == ModelInit::kRandom && directory == c.model.path;
  return weightless ? read_hf_config(directory) : HfDirectory(directory).config();
}

ModelConfig model_of(const RunConfig& c, const std::filesystem::path& directory) {
  return parse_model_config(model_json(c, directory), (directory / "config.json").string());
}

std::filesystem::path frozen_base(const RunConfig& c, const QuantizationPlan& plan) {
  const std::filesystem::path source = quantization_source(c);
  if (!plan.any()) return c.model.path;
  const auto stored =
      parse_quantization_config(model_json(c, source), (source / "config.json").string());
  return stored && stored->group_size == plan.config.group_size ? source : c.model.path;
}

JobPlans job_plans(const RunConfig& config) {
  const std::filesystem::path directory = quantization_source(config);
  ModelConfig model = model_of(config, directory);
  ParameterTable table = model_parameters(model);
  for (const auto& other : {config.model.path, config.model.reference}) {
    if (!other.empty() && other != directory) {
      check_same_model(config, model, table, directory, other);
    }
  }
  model.lora = config.lora.shape();
  table = model_parameters(model);
  QuantizationPlan int4 =
      checkpoint_plan(model_json(config, directory), (directory / "config.json").string(), table);
  if (config.qat.group_size && *config.qat.group_size != int4.config.group_size && int4.any()) {
    QuantizationConfig changed = int4.config;
    changed.group_size = *config.qat.group_size;
    int4 = plan_from_config(table, changed);
  }
  const QuantizationPlan plain = plan_bf16(table);
  // A supervised job serves nobody: its checkpoint holds what it trained.
  const bool serve_int4 = config.qat.enabled || (config.rollout.quantize && !is_supervised(config));
  if (serve_int4 && int4.any() && int4.config.bits != 4) {
    fail(ErrorCode::kInvalidArgument,
         "{} '{}' has {} bits; only INT4 is trained and served packed: convert the model with "
         "--quant-type W4A16, or set qat.enabled and rollout.quantize to false",
         config.model.int4.empty() ? "model.path" : "model.int4", directory.string(),
         int4.config.bits);
  }
  JobPlans plans{config.qat.enabled ? int4 : plain, serve_int4 ? int4 : plain, {}};
  if (!config.rollout.draft_model.empty() && !is_supervised(config)) {
    plans.draft = draft_part(config.rollout.draft_model, plans.serve);
  }
  return plans;
}

}  // namespace nibble
