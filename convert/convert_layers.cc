#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "convert/conversion.h"
#include "convert/matrix.h"
#include "convert/staged_layers.h"
#include "core/base/fail.h"
#include "core/models/weights.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

// The streams of one conversion, from embedding to head.
class LayerRun {
 public:
  LayerRun(const Conversion& conversion, const ConvertOptions& options,
           const CalibrationTokens& tokens, const StreamPlace& place, const ops::Backend& backend,
           StagedLayers& staged)
      : conversion_(conversion),
        options_(options),
        backend_(backend),
        staged_(staged),
        weights_(conversion.input(), conversion.spec().table, backend),
        calibration_(conversion.spec(), backend, tokens.calibration, place),
        original_(conversion.spec(), backend, tokens.held_out, place),
        quantized_(conversion.spec(), backend, tokens.held_out, place),
        quantizer_(conversion.spec(), conversion.plan(), options.method, options.gptq, backend,
                   calibration_) {
    const int64_t embedding = conversion.spec().table.embedding;
    weights_.load(embedding);
    for (TokenStream* stream : {&calibration_, &original_, &quantized_}) stream->start(weights_);
    weights_.drop(embedding);
  }

  // True if an interrupted run had done it.
  bool run(int64_t layer) {
    weights_.load_layer(layer);
    original_.advance(layer, weights_);
    const bool is_done = staged_.has(layer);
    if (is_done) {
      staged_.restore(layer, weights_, backend_);
      const bool is_last = layer + 1 == std::ssize(conversion_.spec().table.layers);
      if (!is_last) calibration_.advance(layer, weights_);
    } else {
      check_weights(layer);
      staged_.put(layer, quantizer_.quantize(layer, weights_), ops::torch_parallel());
    }
    quantized_.advance(layer, weights_);
    return is_done;
  }
  std::optional<HeldOutResult> compare() {
    if (original_.num_tokens() == 0) return std::nullopt;
    return compare_held_out(conversion_.spec(), backend_, weights_, original_, quantized_);
  }
  int64_t calibration_tokens() const { return calibration_.num_tokens(); }

 private:
  void check_weights(int64_t layer) const {
    const ParameterTable& table = conversion_.spec().table;
    for (int64_t i = 0; i < table.size(); ++i) {
      if (table.at(i).layer != layer || !conversion_.is_quantized(i)) continue;
      check_quantizable(table.at(i), load_bf16(conversion_.input(), table.at(i)),
                        options_.gptq.group_size, options_.gptq.grid, ops::torch_parallel());
    }
  }

  const Conversion& conversion_;
  const ConvertOptions& options_;
  const ops::Backend& backend_;
  StagedLayers& staged_;
  LayerWeights weights_;
  TokenStream calibration_, original_, quantized_;
  const LayerQuantizer quantizer_;
};

int64_t spilled_bytes(const Conversion& conversion, const ConvertOptions& options,
                      const CalibrationTokens& tokens) {
  if (!options.spills) return 0;
  int64_t count = 0;
  for (const auto& window : tokens.calibration) count += std::ssize(window);
  for (const auto& window : tokens.held_out) count += 2 * std::ssize(window);
  // Residual stream, and beside it the widest input within a layer.
  int64_t width = 0;
  for (const ParameterSpec& p : conversion.spec().table.parameters) {
    if (p.layer >= 0) width = std::max(width, p.cols);
  }
  return count * (conversion.spec().config.hidden + width) * static_cast<int64_t>(sizeof(float));
}

// What the bits of a conversion depend on: a CPU's products are split over threads.
std::string device_of(const ops::Backend& backend) {
  std::string name(backend.name());
  if (backend.kind() == DeviceKind::kCpu) name += fmt::format(", {} threads", ops::num_threads());
  return name;
}

std::string recovery_warning(const ConvertedMatrix& matrix) {
  const CalibrationReport& c = *matrix.calibration;
  return fmt::format(
      "'{}': the statistics of its input could not be factored as they are; {} "
      "(dampening {:.3g})",
      matrix.module,
      c.recovery == recovery_name(Recovery::kRoundToNearest) ? "it is rounded to nearest"
                                                             : "used: " + c.recovery,
      c.dampening);
}

void run_layers(const Conversion& conversion, const ConvertOptions& options,
                const CalibrationTokens& tokens, const StreamPlace& place,
                const ops::Backend& backend, StagedLayers& staged, const ConvertProgress& progress,
                ConvertReport& report) {
  const ParameterTable& table = conversion.spec().table;
  LayerRun run(conversion, options, tokens, place, backend, staged);
  int64_t done_bytes = 0;
  for (int64_t layer = 0; layer < std::ssize(table.layers); ++layer) {
    report.resumed_layers += run.run(layer) ? 1 : 0;
    done_bytes += conversion.layer_bytes(layer);
    progress(done_bytes, conversion.input_bytes(), fmt::format("layer {}", layer));
  }
  report.held_out = run.compare();
  if (report.held_out && !std::isfinite(report.held_out->kl)) {
    report.warnings.push_back(
        "the quantized model's outputs on held-out text are not finite: its activations overflow");
  }
  report.calibration_tokens = run.calibration_tokens();
}

void write_model(const Conversion& conversion, const StagedLayers& staged, ModelOutput& output) {
  const ParameterTable& table = conversion.spec().table;
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    if (conversion.is_quantized(i)) {
      if (output.is_written(p.module + ".weight_packed")) continue;
      const StoredParameter packed = staged.packed(i);
      output.write_packed(p, packed.words, packed.scale);
    } else if (!output.is_written(p.name())) {
      output.write(p.name(), load_bf16(conversion.input(), p));
    }
  }
}

}  // namespace

ConvertReport convert_layers(const Conversion& conversion, const ConvertOptions& options,
                             const CalibrationTokens& tokens, const ops::Backend& backend,
                             const ConvertProgress& progress) {
  const at::NoGradGuard no_grad;
  const ParameterTable& table = conversion.spec().table;
  ConversionOutput output(conversion, options, &tokens, device_of(backend));
  StagedLayers staged(output.model().path() / "layers", table, conversion.plan());
  StreamPlace place = options.streams;
  if (options.spills) place.spill_directory = output.model().path();
  ConvertReport report;
  report.output_bytes = output.bytes();
  // Finished layers, and then the files that are made of them.
  output.model().require_free_bytes(2 * output.bytes() +
                                    spilled_bytes(conversion, options, tokens));
  output.fill([&] {
    run_layers(conversion, options, tokens, place, backend, staged, progress, report);
    write_model(conversion, staged, output.model());
    progress(conversion.input_bytes(), conversion.input_bytes(), "writing");
    report.matrices = staged.reports();
    output.finish(conversion);
  });
  for (const ConvertedMatrix& matrix : report.matrices) {
    if (matrix.calibration && matrix.calibration->recovery != recovery_name(Recovery::kNone)) {
      report.warnings.push_back(recovery_warning(matrix));
    }
  }
  return report;
}

}  // namespace nibble
