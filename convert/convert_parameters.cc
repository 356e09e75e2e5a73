#include "convert/conversion.h"
#include "convert/matrix.h"
#include "core/models/weights.h"
#include "core/ops/torch_parallel.h"

namespace nibble {

ConvertReport convert_parameters(const Conversion& conversion, const ConvertOptions& options,
                                 const ConvertProgress& progress) {
  const ParameterTable& table = conversion.spec().table;
  const QuantizationPlan& plan = conversion.plan();
  ConvertReport report;
  ConversionOutput output(conversion, options, nullptr, DeviceKind::kCpu);
  report.output_bytes = output.bytes();
  output.fill([&] {
    int64_t done_bytes = 0;
    for (int64_t i = 0; i < table.size(); ++i) {
      const ParameterSpec& p = table.at(i);
      const std::vector<uint16_t> weight = load_bf16(conversion.input(), p);
      const bool is_written = output.model().is_written(
          conversion.is_quantized(i) ? p.module + ".weight_packed" : p.name());
      if (conversion.is_quantized(i)) {
        // Also of what is written already: its error is reported.
        const RoundedMatrix rounded = round_matrix(p, weight, plan, options.gptq.grid,
                                                   options.gptq.search, ops::torch_parallel());
        if (!is_written) output.model().write_packed(p, rounded.packed.words, rounded.packed.scale);
        report.matrices.push_back(
            {p.module, p.rows, p.cols, rounded.relative_rms_error, std::nullopt});
      } else if (!is_written) {
        output.model().write(p.name(), weight);
      }
      done_bytes += 2 * p.num_elements();
      progress(done_bytes, conversion.input_bytes(), p.module);
    }
  });
  output.finish(conversion);
  return report;
}

}  // namespace nibble
