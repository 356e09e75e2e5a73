#include "cli/planned_model.h"

#include "convert/gptq.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/checkpoint/hf_directory.h"

namespace nibble {
namespace {

QuantizationPlan quantization_of(const PlannedModel& model, const Json& config,
                                 const std::string& what, int64_t group_size,
                                 const std::string& targets) {
  const auto stored = parse_quantization_config(config, what);
  if (stored && group_size == 0 && targets.empty()) return plan_from_config(model.table, *stored);
  const int64_t group = group_size != 0 ? group_size
                        : stored        ? stored->group_size
                                        : GptqOptions{}.group_size;
  return plan_quantization(
      model.table, targets.empty() ? default_targets(model.config) : parse_quant_targets(targets),
      4, group);
}

}  // namespace

PlannedModel plan_model(const std::filesystem::path& directory, int64_t group_size,
                        const std::string& targets) {
  if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128) {
    fail(ErrorCode::kInvalidArgument, "--group-size is {}; it must be 32, 64 or 128", group_size);
  }
  const std::string what = (directory / "config.json").string();
  const Json config = read_hf_config(directory);
  PlannedModel model;
  model.config = parse_model_config(config, what);
  model.table = model_parameters(model.config);
  model.quantization = quantization_of(model, config, what, group_size, targets);
  model.manifest = make_manifest(model.table, model.quantization);
  return model;
}

}  // namespace nibble
