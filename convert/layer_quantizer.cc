#include "convert/layer_quantizer.h"

#include <ATen/ops/triu.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/base/clock.h"

namespace nibble {
namespace {

// Beyond this the gated activations of an MLP, its widest, are computed twice rather than kept.
constexpr int64_t kMostGatedBytes = int64_t{16} << 30;

double sum_of_squares(const at::Tensor& values) {
  return values.square().sum(at::kDouble).item<double>();
}

double ratio(double part, double whole) {
  return whole > 0.0 ? std::sqrt(std::max(part, 0.0) / whole) : 0.0;
}

at::Tensor delta_of(const at::Tensor& weight, const QuantizedMatrix& quantized) {
  return weight.to(at::kFloat).sub_(quantized.rounded);
}

// The products of one input that several matrices share.
class Gram {
 public:
  Gram(int64_t cols, const ops::Backend& backend)
      : backend_(backend), sum_(at::zeros({cols, cols}, backend.options().dtype(at::kFloat))) {}
  void add(const at::Tensor& x) { backend_.add_gram(x, sum_); }
  at::Tensor whole() const { return at::triu(sum_).add_(at::triu(sum_, 1).t()); }

 private:
  const ops::Backend& backend_;
  at::Tensor sum_;  // right on and above its diagonal
};

}  // namespace

// One layer.
class LayerQuantizer::Pass {
 public:
  Pass(const LayerQuantizer& quantizer, int64_t layer, LayerWeights& weights)
      : q_(quantizer),
        layer_(layer),
        p_(quantizer.spec_.table.layers[static_cast<size_t>(layer)]),
        weights_(weights),
        stream_(quantizer.calibration_),
        is_last_(layer + 1 == std::ssize(quantizer.spec_.table.layers)) {}

  std::vector<LayerMatrix> run() {
    mix();
    if (p_.router < 0) {
      run_mlp();
    } else {
      run_experts();
    }
    return std::move(matrices_);
  }

 private:
  using Value = at::Tensor;

  std::vector<int64_t> wanted(std::initializer_list<int64_t> parameters) const {
    std::vector<int64_t> chosen;
    for (const int64_t p : parameters) {
      if (q_.plan_.quantized[static_cast<size_t>(p)]) chosen.push_back(p);
    }
    return chosen;
  }
  std::optional<Gram> gram_for(const std::vector<int64_t>& parameters) const {
    if (parameters.empty()) return std::nullopt;
    return Gram(q_.spec_.table.at(parameters[0]).cols, q_.backend_);
  }
  // Shared inputs have been summed: quantizes what is given them.
  void quantize(const std::vector<int64_t>& parameters, std::optional<Gram>& gram) {
    if (!gram) return;
    const at::Tensor whole = gram->whole();
    gram.reset();
    Stopwatch watch;
    const GptqFactor factor = factor_gram(whole, q_.options_);
    for (const int64_t p : parameters) {
      LayerMatrix out = q_quantize(p, whole, factor);
      out.elapsed_ms = watch.restart_ms();  // of the first, also what all share
      weights_.replace(p, out.quantized.rounded);
      matrices_.push_back(std::move(out));
    }
  }
  LayerMatrix q_quantize(int64_t parameter, const at::Tensor& gram, const GptqFactor& factor) const;

  // Up to the residual stream behind attention.
  void mix() {
    const auto inputs = wanted({p_.q, p_.k, p_.v});
    if (auto gram = gram_for(inputs)) {
      stream_.visit(weights_, [&](TapeExecutor& run, Value& residual, size_t) {
        gram->add(run.rms_norm(residual, p_.input_norm));
      });
      quantize(inputs, gram);
    }
    const auto output = wanted({p_.o});
    auto gram = gram_for(output);
    TokenRows mixed = stream_.make_rows(q_.spec_.table.at(p_.o).cols);
    stream_.visit(weights_, [&](TapeExecutor& run, Value& residual, size_t batch) {
      const Value value = mix_tokens(run, q_.spec_, layer_, residual);
      if (gram) gram->add(value);
      mixed.store(batch, value);
    });
    quantize(output, gram);
    stream_.update(weights_, [&](TapeExecutor& run, Value& residual, size_t batch) {
      residual = run.add(residual, run.linear(mixed.load(batch), p_.o));
    });
  }

  Value mlp_input(TapeExecutor& run, const Value& residual) const {
    return run.rms_norm(residual, p_.post_norm);
  }
  void add_mlp_inputs(std::optional<Gram>& gram) {
    if (!gram) return;
    stream_.visit(weights_, [&](TapeExecutor& run, Value& residual, size_t) {
      gram->add(mlp_input(run, residual));
    });
  }

  void run_mlp() {
    const auto first = wanted({p_.gate, p_.up});
    auto gram = gram_for(first);
    add_mlp_inputs(gram);
    quantize(first, gram);
    const int64_t width = q_.spec_.table.at(p_.down).cols;
    const int64_t bytes = stream_.num_tokens() * width * q_.backend_.options().dtype().itemsize();
    std::optional<TokenRows> kept;
    const auto second = wanted({p_.down});
    if (auto down = gram_for(second)) {
      if (!is_last_ && bytes <= kMostGatedBytes) kept.emplace(stream_.make_rows(width));
      stream_.visit(weights_, [&](TapeExecutor& run, Value& residual, size_t batch) {
        const Value gated = gate_tokens(run, p_, mlp_input(run, residual));
        down->add(gated);
        if (kept) kept->store(batch, gated);
      });
      quantize(second, down);
    }
    if (is_last_) return;
    stream_.update(weights_, [&](TapeExecutor& run, Value& residual, size_t batch) {
      const Value gated = kept ? kept->load(batch) : gate_tokens(run, p_, mlp_input(run, residual));
      residual = run.add(residual, run.linear(gated, p_.down));
    });
  }

  void run_experts() {
    const int64_t num_experts = q_.spec_.table.num_experts;
    std::vector<int64_t> first;
    for (int64_t e = 0; e < num_experts; ++e) {
      const int64_t gate = p_.first_expert + 3 * e;
      for (const int64_t p : wanted({gate, gate + 1})) first.push_back(p);
    }
    auto gram = gram_for(first);
    add_mlp_inputs(gram);
    quantize(first, gram);
    calibrate_down(num_experts);
    if (is_last_) return;
    stream_.update(weights_, [&](TapeExecutor& run, Value& residual, size_t) {
      residual = run.add(residual, route_tokens(run, p_, layer_, mlp_input(run, residual)));
    });
  }

  // Every expert sees every token.
  void calibrate_down(int64_t num_experts) {
    std::vector<std::vector<int64_t>> second;
    std::vector<std::optional<Gram>> grams;
    bool any = false;
    for (int64_t e = 0; e < num_experts; ++e) {
      second.push_back(wanted({p_.first_expert + 3 * e + 2}));
      grams.push_back(gram_for(second.back()));
      any = any || grams.back();
    }
    if (!any) return;
    stream_.visit(weights_, [&](TapeExecutor& run, Value& residual, size_t) {
      const Value x = mlp_input(run, residual);
      for (int64_t e = 0; e < num_experts; ++e) {
        const int64_t gate = p_.first_expert + 3 * e;
        auto& own = grams[static_cast<size_t>(e)];
        if (own) own->add(run.silu_mul(run.linear(x, gate), run.linear(x, gate + 1)));
      }
    });
    for (size_t e = 0; e < grams.size(); ++e) quantize(second[e], grams[e]);
  }

  const LayerQuantizer& q_;
  const int64_t layer_;
  const LayerParameters& p_;
  LayerWeights& weights_;
  TokenStream& stream_;
  const bool is_last_;
  std::vector<LayerMatrix> matrices_;
};

LayerMatrix LayerQuantizer::Pass::q_quantize(int64_t parameter, const at::Tensor& gram,
                                             const GptqFactor& factor) const {
  const GptqOptions& options = q_.options_;
  LayerMatrix out{parameter};
  out.dampening = factor.dampening;
  out.recovery = factor.recovery;
  const at::Tensor weight = weights_.at(parameter);
  const at::Tensor nearest_scale =
      matrix_scales(weight, options, kernels::ScaleSearch::kNone, {}, q_.backend_);
  const at::Tensor scale = options.search == kernels::ScaleSearch::kNone
                               ? nearest_scale
                               : matrix_scales(weight, options, options.search,
                                               gram.diagonal().contiguous(), q_.backend_);
  const GptqResult result = quantize_gptq(weight, scale, gram, factor, options, q_.backend_);
  out.quantized = result.matrix;
  const double energy = output_error(weight.to(at::kFloat), gram);
  out.weight_error =
      ratio(sum_of_squares(delta_of(weight, result.matrix)), sum_of_squares(weight.to(at::kFloat)));
  out.output_error = ratio(result.output_error, energy);
  out.nearest_output_error =
      ratio(output_error(delta_of(weight, quantize_nearest(weight, nearest_scale, options)), gram),
            energy);
  return out;
}

std::vector<LayerMatrix> LayerQuantizer::quantize(int64_t layer, LayerWeights& weights) const {
  if (method_ == QuantMethod::kNearest) return round_all(layer, weights);
  std::vector<LayerMatrix> matrices = Pass(*this, layer, weights).run();
  std::sort(matrices.begin(), matrices.end(),
            [](const LayerMatrix& a, const LayerMatrix& b) { return a.parameter < b.parameter; });
  return matrices;
}

std::vector<LayerMatrix> LayerQuantizer::round_all(int64_t layer, LayerWeights& weights) const {
  std::vector<LayerMatrix> matrices;
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    if (spec_.table.at(p).layer != layer || !plan_.quantized[static_cast<size_t>(p)]) continue;
    const Stopwatch watch;
    LayerMatrix out{p};
    const at::Tensor weight = weights.at(p);
    out.quantized = quantize_nearest(
        weight, matrix_scales(weight, options_, options_.search, {}, backend_), options_);
    out.weight_error = ratio(sum_of_squares(delta_of(weight, out.quantized)),
                             sum_of_squares(weight.to(at::kFloat)));
    out.elapsed_ms = watch.elapsed_ms();
    weights.replace(p, out.quantized.rounded);
    matrices.push_back(std::move(out));
  }
  if (layer + 1 < std::ssize(spec_.table.layers)) calibration_.advance(layer, weights);
  return matrices;
}

}  // namespace nibble
