#include "convert/matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "core/base/fail.h"
#include "core/quant/bf16.h"
#include "core/quant/rows.h"

namespace nibble {
namespace {

constexpr int64_t kRowGrain = 16;

size_t size_of(int64_t count) { return static_cast<size_t>(count); }

// Other grids and searched scales, without a vectorized kernel: plain loops, rows split between
// threads.
StoredParameter round_rows(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                           const QuantizationPlan& plan, quant::Grid grid,
                           kernels::ScaleSearch search, const kernels::Parallel& parallel) {
  const int bits = plan.config.bits;
  const int64_t cols = parameter.cols;
  const quant::GroupShape shape{parameter.rows, cols, plan.config.group_size};
  const int64_t groups = shape.groups_per_row();
  const int64_t words = cols * bits / 32;
  check_quantizable(parameter, weight, shape.group, grid, parallel);
  StoredParameter out;
  out.words.resize(size_of(parameter.rows * words));
  out.scale.resize(size_of(parameter.rows * groups));
  kernels::group_scales({weight.data(), shape, grid, search, nullptr, out.scale.data()}, parallel);
  parallel.run(parameter.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> code(size_of((end - begin) * cols));
    for (int64_t i = 0; i < std::ssize(code); ++i) {
      const int64_t at = begin * cols + i;
      const float scale = quant::bf16_to_float(out.scale[size_of(at / shape.group)]);
      const float value = quant::bf16_to_float(weight[size_of(at)]);
      code[size_of(i)] = static_cast<int8_t>(quant::quantize_code(value, scale, grid));
    }
    quant::pack_rows(code.data(), end - begin, cols, bits, out.words.data() + begin * words);
  });
  return out;
}

}  // namespace

StoredParameter round_matrix(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                             const QuantizationPlan& plan, quant::Grid grid,
                             kernels::ScaleSearch search, const kernels::Parallel& parallel) {
  NIBBLE_CHECK((grid == quant::Grid::kSym127) == (plan.config.bits == 8),
               "a grid of other than {} bits", plan.config.bits);
  if (grid != quant::Grid::kSym7 || search != kernels::ScaleSearch::kNone) {
    return round_rows(parameter, weight, plan, grid, search, parallel);
  }
  std::vector<float> master(weight.size());
  parallel.run(static_cast<int64_t>(weight.size()), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      master[size_of(i)] = quant::bf16_to_float(weight[size_of(i)]);
    }
  });
  StoredParameter out;
  quantize_parameter(parameter, master.data(), plan, parallel, out);
  return out;
}

void check_quantizable(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                       int64_t group_size, quant::Grid grid, const kernels::Parallel& parallel) {
  using Kind = quant::QuantizeProblem::Kind;
  const int64_t none = std::ssize(weight);
  std::atomic<int64_t> first{none};
  const auto group_is_good = [&](int64_t begin) {
    float absmax = 0.0f;
    bool finite = true;
    for (int64_t i = begin; i < begin + group_size; ++i) {
      finite = finite && quant::bf16_is_finite(weight[size_of(i)]);
      absmax = std::max(absmax, std::fabs(quant::bf16_to_float(weight[size_of(i)])));
    }
    const float scale = quant::bf16_to_float(quant::group_scale(absmax, grid));
    return finite &&
           quant::bf16_is_finite(quant::dequantize_code(quant::grid_limits(grid).min_code, scale));
  };
  parallel.run(none / group_size, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      if (group_is_good(g * group_size)) continue;
      int64_t before = first;
      while (g * group_size < before && !first.compare_exchange_weak(before, g * group_size)) {
      }
      return;
    }
  });
  if (first == none) return;
  const auto begin = weight.subspan(size_of(first), size_of(group_size));
  const bool finite = std::all_of(begin.begin(), begin.end(), quant::bf16_is_finite);
  fail(ErrorCode::kInvalidArgument, "tensor '{}', row {}, group {}: {}", parameter.name(),
       first / parameter.cols, first % parameter.cols / group_size,
       quant::problem_text(finite ? Kind::kOverflow : Kind::kNonFiniteWeight));
}

double relative_rms_error(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                          const QuantizationPlan& plan, const StoredParameter& packed,
                          const kernels::Parallel& parallel) {
  const int64_t cols = parameter.cols;
  const int64_t groups = cols / plan.config.group_size;
  const int64_t words = cols * plan.config.bits / 32;
  // One sum a row, added up in row order: the result does not depend on the threads.
  std::vector<double> difference(size_of(parameter.rows));
  std::vector<double> norm(size_of(parameter.rows));
  parallel.run(parameter.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> code(size_of(cols));
    std::vector<uint16_t> rounded(size_of(cols));
    for (int64_t r = begin; r < end; ++r) {
      quant::unpack_rows(packed.words.data() + r * words, 1, cols, plan.config.bits, code.data());
      quant::dequantize_rows(code.data(), packed.scale.data() + r * groups,
                             {1, cols, plan.config.group_size}, rounded.data());
      for (int64_t c = 0; c < cols; ++c) {
        const double w = quant::bf16_to_float(weight[size_of(r * cols + c)]);
        const double d = w - quant::bf16_to_float(rounded[size_of(c)]);
        difference[size_of(r)] += d * d;
        norm[size_of(r)] += w * w;
      }
    }
  });
  double difference_sum = 0.0;
  double norm_sum = 0.0;
  for (size_t r = 0; r < norm.size(); ++r) {
    difference_sum += difference[r];
    norm_sum += norm[r];
  }
  return norm_sum > 0.0 ? std::sqrt(difference_sum / norm_sum) : 0.0;
}

}  // namespace nibble
