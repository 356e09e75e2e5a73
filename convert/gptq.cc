#include "convert/gptq.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/flip.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/base/fail.h"

namespace nibble {
namespace {

// Each of the dampening that was asked for.
constexpr double kDampeningSteps[] = {1.0, 3.0, 10.0, 30.0, 100.0};

// U with H^-1 = U^T U. Turned round (both orders reversed) H is C^T C, so H = R R^T with
// R the turned C^T, and U = R^-1 is the turned C^-T: no inverse of H is ever formed. `turned` is
// the damped H turned round.
std::optional<at::Tensor> inverse_factor(const at::Tensor& turned) {
  // Factorizations are by columns: of a symmetric matrix the other order is the same one.
  const auto [factor, info] = at::linalg_cholesky_ex(turned.mT(), /*upper=*/true);
  if (info.item<int>() != 0) return std::nullopt;
  const at::Tensor identity = at::eye(turned.size(0), turned.options());
  const at::Tensor inverse = at::linalg_solve_triangular(factor, identity.mT(), /*upper=*/true);
  if (!std::isfinite(inverse.sum().item<float>())) return std::nullopt;
  return at::flip(inverse.mT(), {0, 1}).contiguous();
}

std::vector<int64_t> grouped_sizes(const at::Tensor& weight, int64_t group) {
  return {weight.size(0), weight.size(1) / group, group};
}

at::Tensor spread(const at::Tensor& scale) { return scale.to(at::kFloat).unsqueeze(2); }

QuantizedMatrix with_rounded(const at::Tensor& code, const at::Tensor& scale, int64_t group) {
  const at::Tensor product =
      code.to(at::kFloat).view(grouped_sizes(code, group)).mul_(spread(scale));
  return {code, scale, product.to(at::kBFloat16).view_as(code)};
}

const uint16_t* bits(const at::Tensor& bf16) {
  return reinterpret_cast<const uint16_t*>(bf16.const_data_ptr<at::BFloat16>());
}

}  // namespace

const char* recovery_name(Recovery recovery) {
  switch (recovery) {
    case Recovery::kDampening:
      return "more dampening";
    case Recovery::kDiagonalFloor:
      return "diagonal floor";
    case Recovery::kRoundToNearest:
      return "round to nearest";
    case Recovery::kNone:
      break;
  }
  return "none";
}

GptqFactor factor_gram(const at::Tensor& gram, const GptqOptions& options) {
  const int64_t cols = gram.size(0);
  GptqFactor factor;
  at::Tensor diagonal = gram.diagonal().clone();
  factor.dead = diagonal.eq(0).nonzero().flatten();
  diagonal.index_fill_(0, factor.dead, 1.0);
  factor.order = options.act_order
                     ? at::argsort(diagonal, /*stable=*/true, /*dim=*/0, /*descending=*/true)
                     : at::arange(cols, diagonal.options().dtype(at::kLong));
  const at::Tensor turned_order = at::flip(factor.order, {0});
  const double mean = diagonal.mean(at::kDouble).item<double>();

  const auto factor_with = [&](const at::Tensor& new_diagonal) -> std::optional<at::Tensor> {
    at::Tensor turned = gram.index_select(0, turned_order).index_select(1, turned_order);
    turned.diagonal().copy_(new_diagonal.index_select(0, turned_order));
    return inverse_factor(turned);
  };
  const auto take = [&](const at::Tensor& upper, const at::Tensor& new_diagonal) {
    factor.upper = upper;
    factor.added = new_diagonal.sub(gram.diagonal()).index_fill_(0, factor.dead, 0.0);
  };
  for (const double step : kDampeningSteps) {
    factor.dampening = step * options.dampening;
    const at::Tensor damped = diagonal.add(factor.dampening * mean);
    if (const auto upper = factor_with(damped)) {
      take(*upper, damped);
      factor.recovery = step == 1.0 ? Recovery::kNone : Recovery::kDampening;
      return factor;
    }
  }
  const at::Tensor floored = diagonal.clamp_min(mean).add(factor.dampening * mean);
  if (const auto upper = factor_with(floored)) {
    take(*upper, floored);
    factor.recovery = Recovery::kDiagonalFloor;
    return factor;
  }
  factor.recovery = Recovery::kRoundToNearest;
  return factor;
}

at::Tensor matrix_scales(const at::Tensor& weight, const GptqOptions& options,
                         kernels::ScaleSearch search, const at::Tensor& importance,
                         const ops::Backend& backend) {
  const quant::GroupShape shape{weight.size(0), weight.size(1), options.group_size};
  at::Tensor scale = at::empty({shape.rows, shape.groups_per_row()}, weight.options());
  backend.weight_kernels().group_scales(
      {bits(weight), shape, options.grid, search,
       importance.defined() ? importance.const_data_ptr<float>() : nullptr,
       reinterpret_cast<uint16_t*>(scale.data_ptr<at::BFloat16>())});
  return scale;
}

QuantizedMatrix quantize_nearest(const at::Tensor& weight, const at::Tensor& scale,
                                 const GptqOptions& options) {
  const quant::GridLimits limits = quant::grid_limits(options.grid);
  // IEEE division and rounding half to even, as quant::quantize_code has them.
  const at::Tensor code = weight.to(at::kFloat)
                              .view(grouped_sizes(weight, options.group_size))
                              .div(spread(scale))
                              .round_()
                              .clamp_(limits.min_code, limits.max_code)
                              .to(at::kChar)
                              .view_as(weight);
  return with_rounded(code, scale, options.group_size);
}

GptqResult quantize_gptq(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& gram,
                         const GptqFactor& factor, const GptqOptions& options,
                         const ops::Backend& backend) {
  const auto delta_of = [&](const QuantizedMatrix& matrix) {
    return weight.to(at::kFloat).sub_(matrix.rounded);
  };
  if (factor.recovery == Recovery::kRoundToNearest) {
    QuantizedMatrix nearest = quantize_nearest(weight, scale, options);
    const double error = output_error(delta_of(nearest), gram);
    return {std::move(nearest), error};
  }
  const int64_t rows = weight.size(0);
  const int64_t cols = weight.size(1);
  at::Tensor rest = weight.to(at::kFloat);
  rest.index_fill_(1, factor.dead, 0.0);
  if (options.act_order) rest = rest.index_select(1, factor.order);
  at::Tensor code = at::empty({rows, cols}, weight.options().dtype(at::kChar));
  double loss = 0.0;
  for (int64_t begin = 0; begin < cols; begin += kernels::kGptqBlock) {
    const int64_t width = std::min<int64_t>(kernels::kGptqBlock, cols - begin);
    const int64_t end = begin + width;
    at::Tensor error = at::empty({rows, width}, rest.options());
    backend.weight_kernels().gptq_block(
        {rest.const_data_ptr<float>() + begin, cols, rows, width,
         factor.upper.const_data_ptr<float>() + begin * cols + begin, cols,
         factor.order.const_data_ptr<int64_t>() + begin, bits(scale), scale.size(1),
         options.group_size, options.grid, code.data_ptr<int8_t>(), cols, error.data_ptr<float>()});
    loss += error.square().sum(at::kDouble).item<double>();
    if (end == cols) break;
    rest.narrow(1, end, cols - end)
        .addmm_(error, factor.upper.narrow(0, begin, width).narrow(1, end, cols - end), 1, -1);
  }
  GptqResult result{with_rounded(code, scale, options.group_size), 0.0};
  // Squares of the errors are what the damped gram makes of the difference (Frantar et al. 2022,
  // section 3); what was added to its diagonal is taken out again.
  result.output_error =
      loss - delta_of(result.matrix).square_().mul_(factor.added).sum(at::kDouble).item<double>();
  return result;
}

double output_error(const at::Tensor& delta, const at::Tensor& gram) {
  constexpr int64_t kCols = 512;
  const int64_t cols = gram.size(0);
  double sum = 0.0;
  // The gram is symmetric: what lies on one side of its diagonal counts twice.
  for (int64_t begin = 0; begin < cols; begin += kCols) {
    const int64_t width = std::min(kCols, cols - begin);
    const at::Tensor own = delta.narrow(1, begin, width);
    const at::Tensor rows = gram.narrow(1, begin, width);
    const auto part = [&](const at::Tensor& left, const at::Tensor& block) {
      return at::mm(left, block).mul_(own).sum(at::kDouble).item<double>();
    };
    sum += part(own, rows.narrow(0, begin, width));
    if (begin > 0) sum += 2.0 * part(delta.narrow(1, 0, begin), rows.narrow(0, 0, begin));
  }
  return sum;
}

}  // namespace nibble
