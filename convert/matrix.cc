#include "convert/matrix.h"

#include <cmath>
#include <mutex>
#include <optional>
#include <vector>

#include "core/base/fail.h"
#include "core/quant/bf16.h"
#include "core/quant/rows.h"

namespace nibble {
namespace {

constexpr int64_t kRowGrain = 16;

size_t size_of(int64_t count) { return static_cast<size_t>(count); }

// Grids without a vectorized kernel: the plain loops, rows split between threads.
StoredParameter round_rows(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                           const QuantizationPlan& plan, quant::Grid grid,
                           const kernels::Parallel& parallel) {
  const int bits = plan.config.bits;
  const int64_t cols = parameter.cols;
  const int64_t groups = cols / plan.config.group_size;
  const int64_t words = cols * bits / 32;
  StoredParameter out;
  out.words.resize(size_of(parameter.rows * words));
  out.scale.resize(size_of(parameter.rows * groups));
  std::mutex mutex;
  std::optional<quant::QuantizeProblem> first;
  parallel.run(parameter.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> code(size_of((end - begin) * cols));
    const quant::GroupShape shape{end - begin, cols, plan.config.group_size};
    auto problem = quant::quantize_rows(weight.data() + begin * cols, shape, grid,
                                        out.scale.data() + begin * groups, code.data());
    if (problem) {
      problem->row += begin;
      const std::lock_guard lock(mutex);
      if (!first || problem->row < first->row) first = problem;
      return;
    }
    quant::pack_rows(code.data(), end - begin, cols, bits, out.words.data() + begin * words);
  });
  if (first) {
    fail(ErrorCode::kInvalidArgument, "tensor '{}', row {}, group {}: {}", parameter.name(),
         first->row, first->group, quant::problem_text(first->kind));
  }
  return out;
}

}  // namespace

StoredParameter round_matrix(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                             const QuantizationPlan& plan, quant::Grid grid,
                             const kernels::Parallel& parallel) {
  NIBBLE_CHECK((grid == quant::Grid::kSym127) == (plan.config.bits == 8),
               "a grid of other than {} bits", plan.config.bits);
  if (grid != quant::Grid::kSym7) return round_rows(parameter, weight, plan, grid, parallel);
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
