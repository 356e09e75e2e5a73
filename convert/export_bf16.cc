#include "convert/export_bf16.h"

#include "core/models/checkpoint_tensors.h"
#include "core/models/weights.h"
#include "core/spec/model_config.h"

namespace nibble {

int64_t export_bf16(const std::filesystem::path& input_dir, const ModelOutput::Place& place,
                    const ConvertProgress& progress) {
  const HfDirectory input(input_dir);
  const ParameterTable table =
      model_parameters(parse_model_config(input.config(), (input_dir / "config.json").string()));
  check_checkpoint_tensors(input, table, checkpoint_plan(input, table));
  const std::vector<TensorInfo> tensors = model_tensors(table, plan_bf16(table));
  const int64_t bytes = total_bytes(tensors);
  ModelOutput output(place, tensors);
  int64_t done_bytes = 0;
  for (const ParameterSpec& p : table.parameters) {
    output.write(p.name(), load_bf16(input, p));
    done_bytes += 2 * p.num_elements();
    progress(done_bytes, bytes, p.module);
  }
  OrderedJson config = read_ordered_config(input_dir);
  config.erase("quantization_config");
  output.finish(input_dir, config);
  return bytes;
}

}  // namespace nibble
