#include "cli/export_checkpoint.h"

#include "cli/export_adapter.h"
#include "core/base/fail.h"
#include "core/ops/torch_parallel.h"
#include "core/quant/rows.h"
#include "trainer/state/checkpoint_reader.h"

namespace nibble {
namespace {

std::vector<uint16_t> dequantized(const ParameterSpec& parameter, const QuantizationPlan& plan,
                                  const StoredParameter& packed) {
  std::vector<int8_t> code(static_cast<size_t>(parameter.num_elements()));
  quant::unpack_rows(packed.words.data(), parameter.rows, parameter.cols, plan.config.bits,
                     code.data());
  std::vector<uint16_t> weight(code.size());
  quant::dequantize_rows(code.data(), packed.scale.data(),
                         {parameter.rows, parameter.cols, plan.config.group_size}, weight.data());
  return weight;
}

}  // namespace

int64_t export_train_checkpoint(const CheckpointExport& job, const ConvertProgress& progress) {
  const CheckpointReader reader(job.checkpoint);
  ModelConfig model = reader.spec().config;
  model.lora.reset();
  const ParameterTable table = model_parameters(model);  // adapters stand behind it
  const QuantizationPlan& served = reader.serve_plan();
  if (job.packed && reader.base()) {
    fail(
        ErrorCode::kInvalidArgument,
        "checkpoint '{}' holds adapters beside frozen weights: what they add is less than INT4 can "
        "tell; use --to peft for the adapters, which engines serve beside '{}', or --to bf16 for "
        "the sum",
        job.checkpoint.string(), reader.base()->directory.string());
  }
  if (job.packed && !served.any()) {
    fail(ErrorCode::kInvalidArgument,
         "checkpoint '{}' is of a BF16 run; use --to bf16, and `nibble convert` on the result",
         job.checkpoint.string());
  }
  const std::vector<TensorInfo> tensors =
      model_tensors(table, job.packed ? served : plan_bf16(table));
  int64_t total_bytes = 0;
  for (const TensorInfo& info : tensors) total_bytes += info.num_bytes();
  ModelOutput output(job.output, tensors);
  int64_t input_bytes = 0;
  for (const ParameterSpec& p : table.parameters) input_bytes += 4 * p.num_elements();
  int64_t done_bytes = 0;
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    const StoredParameter stored = reader.served(i, ops::torch_parallel());
    if (!served.quantized[static_cast<size_t>(i)]) {
      output.write(p.name(), merged(reader, i, {stored.bf16.begin(), stored.bf16.end()}));
    } else if (job.packed) {
      output.write_packed(p, stored.words, stored.scale);
    } else {
      output.write(p.name(), merged(reader, i, dequantized(p, served, stored)));
    }
    done_bytes += 4 * p.num_elements();
    progress(done_bytes, input_bytes, p.module);
  }
  OrderedJson config = reader.config();
  if (!job.packed) config.erase("quantization_config");
  config.erase(kLoraKey);
  output.finish(job.side_files, config);
  return total_bytes;
}

}  // namespace nibble
