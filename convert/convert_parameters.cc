#include "convert/conversion.h"
#include "convert/matrix.h"
#include "core/base/fail.h"
#include "core/models/weights.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

RoundedMatrix round_parameter(const Conversion& conversion, const ConvertOptions& options,
                              const ParameterSpec& parameter, std::span<const uint16_t> weight) {
  try {
    return round_matrix(parameter, weight, conversion.plan(), options.gptq.grid,
                        options.gptq.search, ops::torch_parallel());
  } catch (const Error&) {
    (void)load_bf16(conversion.input(), parameter);  // of NaN and infinity it names the column
    throw;
  }
}

}  // namespace

ConvertReport convert_parameters(const Conversion& conversion, const ConvertOptions& options,
                                 const ConvertProgress& progress) {
  const ParameterTable& table = conversion.spec().table;
  ConvertReport report;
  ConversionOutput output(conversion, options, nullptr, "any");  // the same bits everywhere
  report.output_bytes = output.bytes();
  output.fill([&] {
    int64_t done_bytes = 0;
    for (int64_t i = 0; i < table.size(); ++i) {
      const ParameterSpec& p = table.at(i);
      const bool is_quantized = conversion.is_quantized(i);
      // Rounding checks what it reads; threads then read the file, not one.
      const auto mapped =
          is_quantized ? mapped_bf16(conversion.input(), p) : std::span<const uint16_t>{};
      std::vector<uint16_t> loaded;
      if (mapped.empty()) loaded = load_bf16(conversion.input(), p);
      const std::span<const uint16_t> weight = mapped.empty() ? loaded : mapped;
      const bool is_written =
          output.model().is_written(is_quantized ? p.module + ".weight_packed" : p.name());
      if (is_quantized) {
        // Also of what is written already: its error is reported.
        const RoundedMatrix rounded = round_parameter(conversion, options, p, weight);
        if (!is_written) output.model().write_packed(p, rounded.packed.words, rounded.packed.scale);
        report.matrices.push_back(
            {p.module, p.rows, p.cols, rounded.relative_rms_error, std::nullopt});
      } else if (!is_written) {
        output.model().write(p.name(), weight);
      }
      done_bytes += 2 * p.num_elements();
      progress(done_bytes, conversion.input_bytes(), p.module);
    }
    output.finish(conversion);
  });
  return report;
}

}  // namespace nibble
