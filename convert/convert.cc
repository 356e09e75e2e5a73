#include "convert/convert.h"

#include <map>
#include <utility>

#include "convert/matrix.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/models/checkpoint_tensors.h"
#include "core/models/weights.h"

namespace nibble {
namespace {

void refuse_quantized(const HfDirectory& input) {
  const auto config =
      parse_quantization_config(input.config(), (input.path() / "config.json").string());
  if (!config) return;
  fail(ErrorCode::kInvalidArgument,
       "'{}' is quantized already ({} bits, groups of {}); convert wants BF16 weights, which "
       "`nibble export --to bf16 --input-dir {} --output-dir DIR` makes of it",
       input.path().string(), config->bits, config->group_size, input.path().string());
}

ModelConfig read_model_config(const HfDirectory& input, const ConvertOptions& options) {
  Json config = input.config();
  if (config.contains("auto_map")) {
    if (!options.trust_remote_code) {
      fail(ErrorCode::kInvalidArgument,
           "'{}/config.json' names code of its own (auto_map); add --trust-remote-code if its "
           "architecture is the plain one: Nibble runs no code from a checkpoint",
           input.path().string());
    }
    config.erase("auto_map");
  }
  return parse_model_config(config, (input.path() / "config.json").string());
}

// Marlin, the INT4 kernel of vLLM and SGLang, wants in % 128 = 0 and out % 64 = 0.
std::vector<std::string> marlin_warnings(const ParameterTable& table,
                                         const QuantizationPlan& plan) {
  std::map<std::pair<int64_t, int64_t>, std::pair<std::string, int64_t>> shapes;
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    if (!plan.quantized[static_cast<size_t>(i)]) continue;
    if (p.cols % 128 == 0 && p.rows % 64 == 0) continue;
    const auto [entry, is_new] = shapes.try_emplace({p.rows, p.cols}, p.module, 0);
    ++entry->second.second;
  }
  std::vector<std::string> warnings;
  warnings.reserve(shapes.size());
  for (const auto& [shape, example] : shapes) {
    warnings.push_back(fmt::format(
        "{} matrices of shape [{}, {}], such as '{}', cannot be served by Marlin (vLLM, "
        "SGLang): it wants input % 128 = 0 and output % 64 = 0; Nibble serves them",
        example.second, shape.first, shape.second, example.first));
  }
  return warnings;
}

OrderedJson output_config(const HfDirectory& input, const QuantizationConfig& quantization) {
  OrderedJson config = read_ordered_config(input.path());
  config.erase("auto_map");  // the code it names is not copied
  config["quantization_config"] = quantization_config_json(quantization);
  return config;
}

QuantizationPlan make_plan(const ModelConfig& model, const ParameterTable& table,
                           const ConvertOptions& options) {
  const QuantTargets targets = options.targets.value_or(default_targets(model));
  QuantizationPlan plan =
      plan_quantization(table, targets, options.bits, options.group_size, options.ignore);
  if (!plan.any()) {
    fail(
        ErrorCode::kInvalidArgument,
        "'{}' has nothing to quantize among the chosen targets less what is ignored; see --targets "
        "(linear for a model without experts) and --ignore",
        options.input_dir.string());
  }
  return plan;
}

}  // namespace

ConvertReport convert_rtn(const ConvertOptions& options, const kernels::Parallel& parallel,
                          const ConvertProgress& progress) {
  const Stopwatch watch;
  const HfDirectory input(options.input_dir);
  refuse_quantized(input);
  const ModelConfig model = read_model_config(input, options);
  const ParameterTable table = model_parameters(model);
  const QuantizationPlan plan = make_plan(model, table, options);
  check_checkpoint_tensors(input, table, plan_bf16(table));
  ConvertReport report{plan.config, {}, marlin_warnings(table, plan), 0, 0, 0.0};
  for (const ParameterSpec& p : table.parameters) report.input_bytes += 2 * p.num_elements();
  const std::vector<TensorInfo> tensors = model_tensors(table, plan);
  for (const TensorInfo& info : tensors) report.output_bytes += info.num_bytes();

  ModelOutput output(options.output, tensors);
  int64_t done_bytes = 0;
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    const std::vector<uint16_t> weight = load_bf16(input, p);
    if (plan.quantized[static_cast<size_t>(i)]) {
      const StoredParameter packed = round_matrix(p, weight, plan, options.grid, parallel);
      output.write_packed(p, packed.words, packed.scale);
      report.matrices.push_back(
          {p.module, p.rows, p.cols, relative_rms_error(p, weight, plan, packed, parallel)});
    } else {
      output.write(p.name(), weight);
    }
    done_bytes += 2 * p.num_elements();
    progress(done_bytes, report.input_bytes, p.module);
  }
  output.finish(input.path(), output_config(input, plan.config));
  report.elapsed_ms = watch.elapsed_ms();
  return report;
}

}  // namespace nibble
