#include "convert/compare.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <memory>

#include "convert/conversion.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

// Targeted matrices whose inputs are no multiple of a group.
std::vector<std::string> undivided(const ConvertOptions& options, const Conversion& any_size) {
  std::vector<std::string> modules;
  const ParameterTable& table = any_size.spec().table;
  for (int64_t i = 0; i < table.size(); ++i) {
    if (any_size.is_quantized(i) && table.at(i).cols % options.gptq.group_size != 0) {
      modules.push_back(table.at(i).module);
    }
  }
  return modules;
}

// One group size on its way through the model.
struct Variant {
  Variant(const ConvertOptions& its_options, const CalibrationTokens& tokens,
          const ops::Backend& backend)
      : options(its_options),
        conversion(options),
        calibration(conversion.spec(), backend, calibration_windows(options, tokens),
                    options.streams),
        quantized(conversion.spec(), backend, tokens.held_out, options.streams),
        quantizer(conversion.spec(), conversion.plan(), options.method, options.gptq, backend,
                  calibration) {}
  Variant(const Variant&) = delete;
  Variant& operator=(const Variant&) = delete;

  static std::span<const std::vector<int32_t>> calibration_windows(
      const ConvertOptions& options, const CalibrationTokens& tokens) {
    if (options.method == QuantMethod::kNearest) return {};
    return tokens.calibration;
  }
  // `weights` hold the layer's original values, now and afterwards.
  void run(int64_t layer, LayerWeights& weights) {
    std::map<int64_t, at::Tensor> originals;
    const ParameterTable& table = conversion.spec().table;
    for (int64_t p = 0; p < table.size(); ++p) {
      if (table.at(p).layer == layer && conversion.is_quantized(p)) originals[p] = weights.at(p);
    }
    for (const LayerMatrix& matrix : quantizer.quantize(layer, weights)) {
      squares += matrix.output_error * matrix.output_error;
      ++num_matrices;
    }
    quantized.advance(layer, weights);
    for (const auto& [p, value] : originals) weights.replace(p, value);
  }

  const ConvertOptions options;
  const Conversion conversion;
  TokenStream calibration, quantized;
  const LayerQuantizer quantizer;
  double squares = 0.0;
  int64_t num_matrices = 0;
};

}  // namespace

std::vector<GroupSizeResult> compare_group_sizes(const ConvertOptions& options,
                                                 std::span<const int64_t> group_sizes,
                                                 const CalibrationTokens& tokens,
                                                 const ops::Backend& backend,
                                                 const ConvertProgress& progress) {
  NIBBLE_CHECK(!tokens.held_out.empty(), "nothing to compare on");
  const at::NoGradGuard no_grad;
  ConvertOptions any = options;
  any.gptq.group_size = 1;
  const Conversion base(any);
  const ParameterTable& table = base.spec().table;
  std::vector<GroupSizeResult> results;
  std::vector<std::unique_ptr<Variant>> variants;  // null where a size does not divide
  for (const int64_t group_size : group_sizes) {
    ConvertOptions own = options;
    own.gptq.group_size = group_size;
    results.push_back({group_size, undivided(own, base)});
    variants.push_back(results.back().undivided.empty()
                           ? std::make_unique<Variant>(own, tokens, backend)
                           : nullptr);
  }
  LayerWeights weights(base.input(), table, backend);
  TokenStream original(base.spec(), backend, tokens.held_out, options.streams);
  weights.load(table.embedding);
  original.start(weights);
  for (const auto& variant : variants) {
    if (!variant) continue;
    variant->calibration.start(weights);
    variant->quantized.start(weights);
  }
  weights.drop(table.embedding);
  int64_t done_bytes = 0;
  for (int64_t layer = 0; layer < std::ssize(table.layers); ++layer) {
    weights.load_layer(layer);
    original.advance(layer, weights);
    for (const auto& variant : variants) {
      if (variant) variant->run(layer, weights);
    }
    done_bytes += base.layer_bytes(layer);
    progress(done_bytes, base.input_bytes(), fmt::format("layer {}", layer));
  }
  for (size_t i = 0; i < variants.size(); ++i) {
    if (!variants[i]) continue;
    const Variant& variant = *variants[i];
    if (options.method != QuantMethod::kNearest) {
      results[i].output_error =
          std::sqrt(variant.squares / static_cast<double>(variant.num_matrices));
    }
    results[i].output_bytes = total_bytes(model_tensors(table, variant.conversion.plan()));
    results[i].held_out =
        compare_held_out(base.spec(), backend, weights, original, variant.quantized);
  }
  return results;
}

}  // namespace nibble
