#include "convert/conversion.h"

#include <algorithm>
#include <map>
#include <utility>

#include "convert/staged_layers.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/models/checkpoint_tensors.h"
#include "core/models/weights.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

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

QuantizationPlan make_plan(const ModelSpec& spec, const ConvertOptions& options) {
  const QuantTargets targets = options.targets.value_or(default_targets(spec.config));
  QuantizationPlan plan =
      plan_quantization(spec.table, targets, options.bits, options.gptq.group_size, options.ignore);
  if (!plan.any()) {
    fail(
        ErrorCode::kInvalidArgument,
        "'{}' has nothing to quantize among the chosen targets less what is ignored; see --targets "
        "(linear for a model without experts) and --ignore",
        options.input_dir.string());
  }
  return plan;
}

// Marlin, the INT4 kernel of vLLM and SGLang, wants in % 128 = 0 and out % 64 = 0.
void add_marlin_warnings(const ParameterTable& table, const QuantizationPlan& plan,
                         std::vector<std::string>& warnings) {
  std::map<std::pair<int64_t, int64_t>, std::pair<std::string, int64_t>> shapes;
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    if (!plan.quantized[static_cast<size_t>(i)]) continue;
    if (p.cols % 128 == 0 && p.rows % 64 == 0) continue;
    const auto [entry, is_new] = shapes.try_emplace({p.rows, p.cols}, p.module, 0);
    ++entry->second.second;
  }
  for (const auto& [shape, example] : shapes) {
    warnings.push_back(fmt::format(
        "{} matrices of shape [{}, {}], such as '{}', cannot be served by Marlin (vLLM, "
        "SGLang): it wants input % 128 = 0 and output % 64 = 0; Nibble serves them",
        example.second, shape.first, shape.second, example.first));
  }
}

// Name, size and time of each file of weights.
OrderedJson files_of(const fs::path& directory) {
  std::vector<fs::directory_entry> files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry);
  }
  std::sort(files.begin(), files.end());
  OrderedJson list = OrderedJson::array();
  for (const auto& file : files) {
    list.push_back({file.path().filename().string(), file.file_size(),
                    file.last_write_time().time_since_epoch().count()});
  }
  return list;
}

}  // namespace

Conversion::Conversion(const ConvertOptions& options)
    : input_(options.input_dir),
      spec_(make_model_spec(read_model_config(input_, options))),
      plan_(make_plan(spec_, options)) {
  const QuantizationPlan stored = checkpoint_plan(input_, spec_.table);
  check_checkpoint_tensors(input_, spec_.table, stored);
  if (stored.any()) {
    warnings_.push_back(fmt::format(
        "'{}' is quantized already ({} bits, groups of {}): its dequantized weights are converted, "
        "whatever they were made of",
        input_.path().string(), stored.config.bits, stored.config.group_size));
  }
  add_marlin_warnings(spec_.table, plan_, warnings_);
}

int64_t Conversion::input_bytes() const {
  int64_t bytes = 0;
  for (const ParameterSpec& p : spec_.table.parameters) bytes += 2 * p.num_elements();
  return bytes;
}

int64_t Conversion::layer_bytes(int64_t layer) const {
  int64_t bytes = 0;
  for (const ParameterSpec& p : spec_.table.parameters) {
    if (p.layer == layer) bytes += 2 * p.num_elements();
  }
  return bytes;
}

OrderedJson Conversion::identity(const ConvertOptions& options, const CalibrationTokens* tokens,
                                 const std::string& device) const {
  return {{"version", 1},
          {"input", fs::absolute(input_.path()).lexically_normal().string()},
          {"input_files", files_of(input_.path())},
          {"input_config", read_ordered_config(input_.path()).dump()},
          {"method", options.method == QuantMethod::kGptq ? "gptq" : "rtn"},
          {"quantization_config", quantization_config_json(plan_.config)},
          {"grid", static_cast<int>(options.gptq.grid)},
          {"scale_search", static_cast<int>(options.gptq.search)},
          {"act_order", options.gptq.act_order},
          {"dampening_frac", options.gptq.dampening},
          {"data", tokens == nullptr ? "" : tokens->digest},
          {"device", device},
          {"max_file_bytes", options.output.max_file_bytes}};
}

OrderedJson Conversion::output_config() const {
  OrderedJson config = read_ordered_config(input_.path());
  config.erase("auto_map");  // the code it names is not copied
  config["quantization_config"] = quantization_config_json(plan_.config);
  return config;
}

ConversionOutput::ConversionOutput(const Conversion& conversion, const ConvertOptions& options,
                                   const CalibrationTokens* tokens, const std::string& device)
    : bytes_(total_bytes(model_tensors(conversion.spec().table, conversion.plan()))),
      model_(options.output, model_tensors(conversion.spec().table, conversion.plan()),
             [&](const fs::path& path) {
               claim_conversion(path, conversion.identity(options, tokens, device));
             }) {}

void ConversionOutput::fill(const std::function<void()>& work) {
  const auto keep = [this] {
    model_.keep();
    get_logger("convert")->warn("what is done stays in '{}'; --resume goes on from there",
                                model_.path().string());
  };
  try {
    work();
  } catch (const Error& error) {
    // Of a wrong input nothing is kept, unless hours may be in finished layers.
    const fs::path layers = model_.path() / "layers";
    if (error.code() != ErrorCode::kInvalidArgument ||
        (fs::exists(layers) && !fs::is_empty(layers))) {
      keep();
    }
    throw;
  } catch (...) {
    keep();
    throw;
  }
}

void ConversionOutput::finish(const Conversion& conversion) {
  model_.finish(conversion.input().path(), conversion.output_config(), [&] {
    fs::remove_all(model_.path() / "layers");
    fs::remove(model_.path() / "conversion.json");  // last: without it nothing is gone on from
  });
}

ConvertReport convert(const ConvertOptions& options, const CalibrationTokens* tokens,
                      const ops::Backend& backend, const ConvertProgress& progress) {
  NIBBLE_CHECK(tokens != nullptr || options.method == QuantMethod::kNearest,
               "GPTQ without calibration data");
  const Stopwatch watch;
  const Conversion conversion(options);
  ConvertReport report = tokens == nullptr
                             ? convert_parameters(conversion, options, progress)
                             : convert_layers(conversion, options, *tokens, backend, progress);
  report.quantization = conversion.plan().config;
  report.warnings.insert(report.warnings.begin(), conversion.warnings().begin(),
                         conversion.warnings().end());
  report.input_bytes = conversion.input_bytes();
  report.elapsed_ms = watch.elapsed_ms();
  return report;
}

}  // namespace nibble
