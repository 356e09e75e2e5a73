#include "convert/layer_quantizer.h"

#include <algorithm>
#include <cmath>

#include "convert/layer_statistics.h"
#include "core/base/clock.h"

namespace nibble {
namespace {

double sum_of_squares(const at::Tensor& values) {
  return values.square().sum(at::kDouble).item<double>();
}

double ratio(double part, double whole) {
  return whole > 0.0 ? std::sqrt(std::max(part, 0.0) / whole) : 0.0;
}

at::Tensor delta_of(const at::Tensor& weight, const QuantizedMatrix& quantized) {
  return weight.to(at::kFloat).sub_(quantized.rounded);
}

double weight_error(const at::Tensor& weight, const at::Tensor& delta) {
  return ratio(sum_of_squares(delta), sum_of_squares(weight.to(at::kFloat)));
}

}  // namespace

std::vector<LayerMatrix> LayerQuantizer::quantize(int64_t layer, LayerWeights& weights) const {
  std::vector<LayerMatrix> matrices = method_ == QuantMethod::kNearest
                                          ? quantize_nearest_all(layer, weights)
                                          : quantize_gptq_all(layer, weights);
  std::sort(matrices.begin(), matrices.end(),
            [](const LayerMatrix& a, const LayerMatrix& b) { return a.parameter < b.parameter; });
  for (const LayerMatrix& m : matrices) weights.replace(m.parameter, m.quantized.rounded);
  return matrices;
}

std::vector<LayerMatrix> LayerQuantizer::quantize_nearest_all(int64_t layer,
                                                              const LayerWeights& weights) const {
  std::vector<LayerMatrix> matrices;
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    if (spec_.table.at(p).layer != layer || !plan_.quantized[static_cast<size_t>(p)]) continue;
    const Stopwatch watch;
    LayerMatrix out{p};
    const at::Tensor& weight = weights.at(p);
    out.quantized = quantize_nearest(
        weight, matrix_scales(weight, options_, options_.search, {}, backend_), options_);
    out.weight_error = weight_error(weight, delta_of(weight, out.quantized));
    out.elapsed_ms = watch.elapsed_ms();
    matrices.push_back(std::move(out));
  }
  return matrices;
}

std::vector<LayerMatrix> LayerQuantizer::quantize_gptq_all(int64_t layer,
                                                           LayerWeights& weights) const {
  LayerStatistics statistics(spec_, plan_, layer, backend_);
  calibration_.observe(layer, weights, statistics);
  std::vector<LayerMatrix> matrices;
  for (SharedInput& input : statistics.take()) {
    Stopwatch watch;
    const GptqFactor factor = factor_gram(input.gram, options_);
    const at::Tensor importance = input.gram.diagonal().contiguous();
    for (const int64_t p : input.parameters) {
      LayerMatrix out{p};
      out.dampening = factor.dampening;
      out.recovery = factor.recovery;
      const at::Tensor& weight = weights.at(p);
      const at::Tensor nearest_scale =
          matrix_scales(weight, options_, kernels::ScaleSearch::kNone, {}, backend_);
      const at::Tensor scale =
          options_.search == kernels::ScaleSearch::kNone
              ? nearest_scale
              : matrix_scales(weight, options_, options_.search, importance, backend_);
      out.quantized = quantize_gptq(weight, scale, factor, options_, backend_);
      const double energy = output_error(weight.to(at::kFloat), input.gram);
      const at::Tensor delta = delta_of(weight, out.quantized);
      out.weight_error = weight_error(weight, delta);
      out.output_error = ratio(output_error(delta, input.gram), energy);
      out.nearest_output_error =
          ratio(output_error(delta_of(weight, quantize_nearest(weight, nearest_scale, options_)),
                             input.gram),
                energy);
      out.elapsed_ms = watch.restart_ms();  // of the first, also what all share
      matrices.push_back(std::move(out));
    }
    input.gram = at::Tensor();  // the next factorization may need the memory
  }
  return matrices;
}

}  // namespace nibble
