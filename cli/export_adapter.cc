#include "cli/export_adapter.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <set>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/pending_directory.h"
#include "core/checkpoint/safetensors.h"
#include "core/ops/torch_parallel.h"
#include "core/quant/bf16.h"

namespace nibble {
namespace {

// PEFT takes what ends in a name of the list: names of dense MLPs would take experts along.
std::vector<std::string> target_modules(const ModelSpec& spec) {
  const bool by_last_name =
      spec.config.num_moe_layers() == 0 || spec.config.lora->targets == LoraTargets::kAttention;
  std::set<std::string> names;
  for (int64_t p = 0; p < spec.table.size(); ++p) {
    if (!spec.table.adapter_of(p).exists()) continue;
    const std::string& module = spec.table.at(p).module;
    names.insert(by_last_name ? module.substr(module.rfind('.') + 1) : module);
  }
  return {names.begin(), names.end()};
}

OrderedJson adapter_config(const CheckpointReader& checkpoint) {
  const LoraShape& lora = *checkpoint.spec().config.lora;
  OrderedJson config = {{"peft_type", "LORA"},
                        {"task_type", "CAUSAL_LM"},
                        {"base_model_name_or_path", checkpoint.base()->directory.string()},
                        {"r", lora.rank},
                        {"lora_alpha", lora.alpha},
                        {"lora_dropout", 0.0},
                        {"target_modules", target_modules(checkpoint.spec())},
                        {"bias", "none"},
                        {"fan_in_fan_out", false},
                        {"modules_to_save", nullptr},
                        {"use_rslora", false},
                        {"use_dora", false},
                        {"inference_mode", true}};
  const auto whole = static_cast<int64_t>(lora.alpha);
  if (static_cast<double>(whole) == lora.alpha) config["lora_alpha"] = whole;
  return config;
}

std::string peft_name(const ParameterSpec& parameter) {
  return "base_model.model." + parameter.name();
}

at::Tensor as_float(const std::vector<uint16_t>& bits, int64_t rows, int64_t cols) {
  return at::from_blob(const_cast<uint16_t*>(bits.data()), {rows, cols}, at::kBFloat16)
      .to(at::kFloat);
}

std::vector<uint16_t> bits_of(const Array<uint16_t>& array) { return {array.begin(), array.end()}; }

}  // namespace

int64_t export_adapter(const CheckpointExport& job, const ConvertProgress& progress) {
  const CheckpointReader reader(job.checkpoint);
  const ParameterTable& table = reader.spec().table;
  if (!reader.base()) {
    fail(ErrorCode::kInvalidArgument,
         "checkpoint '{}' has no adapters: all its weights were trained; use --to bf16 or int4",
         job.checkpoint.string());
  }
  std::vector<TensorInfo> tensors;
  for (const ParameterSpec& p : table.parameters) {
    if (!p.is_frozen) tensors.push_back({peft_name(p), DType::kBf16, {p.rows, p.cols}});
  }
  PendingDirectory directory(job.output.directory, job.output.leftover);
  const int64_t all_bytes = total_bytes(tensors);
  directory.require_free_bytes(all_bytes);
  SafetensorsWriter writer(directory.path() / "adapter_model.safetensors", tensors,
                           {{"format", "pt"}});
  int64_t done_bytes = 0;
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    if (p.is_frozen) continue;
    const StoredParameter stored = reader.served(i, ops::torch_parallel());
    writer.write(peft_name(p), std::as_bytes(std::span(stored.bf16)));
    done_bytes += stored.bf16.num_bytes();
    progress(done_bytes, all_bytes, p.module);
  }
  writer.finish();
  if (!job.side_files.empty()) copy_side_files(job.side_files, directory.path());
  write_file_atomically(directory.path() / "adapter_config.json",
                        adapter_config(reader).dump(2) + "\n");
  directory.commit();
  return all_bytes;
}

std::vector<uint16_t> merged(const CheckpointReader& checkpoint, int64_t parameter,
                             std::vector<uint16_t> weight) {
  const ParameterTable& table = checkpoint.spec().table;
  const AdapterParameters adapter = table.adapter_of(parameter);
  if (!adapter.exists()) return weight;
  const auto factor = [&](int64_t p) {
    const auto bits = bits_of(checkpoint.served(p, ops::torch_parallel()).bf16);
    return as_float(bits, table.at(p).rows, table.at(p).cols);
  };
  const ParameterSpec& spec = table.at(parameter);
  const float scale = checkpoint.spec().config.lora->scale();
  const at::Tensor added = at::mm(factor(adapter.b), factor(adapter.a)).mul_(scale);
  const at::Tensor sum = added.add_(as_float(weight, spec.rows, spec.cols));
  const at::Tensor whole = sum.contiguous();
  std::transform(whole.const_data_ptr<float>(), whole.const_data_ptr<float>() + whole.numel(),
                 weight.begin(), quant::float_to_bf16);
  return weight;
}

}  // namespace nibble
