#include "convert/matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/base/fail.h"
#include "core/kernels/adamw.h"
#include "core/kernels/linear.h"
#include "core/kernels/quantize.h"
#include "core/quant/bf16.h"
#include "core/quant/rows.h"

namespace nibble {
namespace {

constexpr int64_t kRowGrain = 16;

size_t size_of(int64_t count) { return static_cast<size_t>(count); }

// Some rows of a matrix: what they become, and the squares that the error is made of.
class RowRounder {
 public:
  RowRounder(std::span<const uint16_t> weight, const quant::GroupShape& shape, int bits,
             quant::Grid grid, kernels::ScaleSearch search, StoredParameter& out)
      : weight_(weight), shape_(shape), bits_(bits), grid_(grid), search_(search), out_(out) {}

  // Of one thread: made once, for its first and largest call.
  struct Scratch {
    std::vector<float> w, rounded;
  };
  // Throws if a weight cannot be quantized, whichever a thread comes to.
  void round(int64_t begin, int64_t end, Scratch& scratch, double* difference, double* norm) const {
    const int64_t cols = shape_.cols;
    const int64_t count = (end - begin) * cols;
    auto& [w, rounded] = scratch;
    w.resize(size_of(count));
    rounded.resize(size_of(count));
    for (int64_t i = 0; i < count; ++i) {
      w[size_of(i)] = quant::bf16_to_float(weight_[size_of(begin * cols + i)]);
    }
    if (grid_ == quant::Grid::kSym7 && search_ == kernels::ScaleSearch::kNone) {
      quantize_sym7(begin, end, w, rounded);
    } else {
      quantize(begin, end, w, rounded);
    }
    for (size_t i = 0; i < w.size(); ++i) rounded[i] = w[i] - rounded[i];
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = (r - begin) * cols;
      difference[r] = kernels::sum_of_squares(rounded.data() + at, cols, kernels::Serial());
      norm[r] = kernels::sum_of_squares(w.data() + at, cols, kernels::Serial());
    }
  }

 private:
  uint32_t* words(int64_t row) const { return out_.words.data() + row * shape_.cols * bits_ / 32; }
  uint16_t* scales(int64_t row) const { return out_.scale.data() + row * shape_.groups_per_row(); }

  // The one grid with vectorized kernels.
  void quantize_sym7(int64_t begin, int64_t end, const std::vector<float>& w,
                     std::vector<float>& rounded) const {
    const quant::GroupShape own{end - begin, shape_.cols, shape_.group};
    const auto problem =
        kernels::quantize_pack_int4(w.data(), own, words(begin), scales(begin), kernels::Serial());
    if (problem) fail(ErrorCode::kInvalidArgument, "{}", quant::problem_text(problem->kind));
    kernels::dequantize(
        {kernels::WeightFormat::kInt4, words(begin), scales(begin), own.rows, own.cols, own.group},
        rounded.data(), kernels::Serial());
  }
  void quantize(int64_t begin, int64_t end, const std::vector<float>& w,
                std::vector<float>& rounded) const {
    const quant::GroupShape own{end - begin, shape_.cols, shape_.group};
    kernels::group_scales(
        {weight_.data() + begin * shape_.cols, own, grid_, search_, nullptr, scales(begin)},
        kernels::Serial());
    std::vector<int8_t> code(w.size());
    for (size_t i = 0; i < w.size(); ++i) {
      const float scale =
          quant::bf16_to_float(scales(begin)[static_cast<int64_t>(i) / shape_.group]);
      const int q = quant::quantize_code(w[i], scale, grid_);
      code[i] = static_cast<int8_t>(q);
      rounded[i] = quant::bf16_to_float(quant::dequantize_code(q, scale));
    }
    quant::pack_rows(code.data(), own.rows, own.cols, bits_, words(begin));
  }

  const std::span<const uint16_t> weight_;
  const quant::GroupShape shape_;
  const int bits_;
  const quant::Grid grid_;
  const kernels::ScaleSearch search_;
  StoredParameter& out_;
};

}  // namespace

RoundedMatrix round_matrix(const ParameterSpec& parameter, std::span<const uint16_t> weight,
                           const QuantizationPlan& plan, quant::Grid grid,
                           kernels::ScaleSearch search, const kernels::Parallel& parallel) {
  const int bits = plan.config.bits;
  NIBBLE_CHECK((grid == quant::Grid::kSym127) == (bits == 8), "a grid of other than {} bits", bits);
  const quant::GroupShape shape{parameter.rows, parameter.cols, plan.config.group_size};
  const bool is_checked_on_the_way =
      grid == quant::Grid::kSym7 && search == kernels::ScaleSearch::kNone;
  if (!is_checked_on_the_way) check_quantizable(parameter, weight, shape.group, grid, parallel);
  RoundedMatrix out;
  out.packed.words = Array<uint32_t>::uninitialized(size_of(parameter.num_elements() * bits / 32));
  out.packed.scale = Array<uint16_t>::uninitialized(size_of(shape.rows * shape.groups_per_row()));
  // One sum a row, added up in row order: the result does not depend on the threads.
  std::vector<double> difference(size_of(shape.rows)), norm(size_of(shape.rows));
  const RowRounder rounder(weight, shape, bits, grid, search, out.packed);
  try {
    parallel.run(shape.rows, kRowGrain, [&](int64_t begin, int64_t end) {
      RowRounder::Scratch scratch;
      for (int64_t r = begin; r < end; r += kRowGrain) {  // in cache
        rounder.round(r, std::min(r + kRowGrain, end), scratch, difference.data(), norm.data());
      }
    });
  } catch (const Error&) {
    check_quantizable(parameter, weight, shape.group, grid, parallel);  // says which is the first
    throw;
  }
  const double whole = std::accumulate(norm.begin(), norm.end(), 0.0);
  const double part = std::accumulate(difference.begin(), difference.end(), 0.0);
  out.relative_rms_error = whole > 0.0 ? std::sqrt(part / whole) : 0.0;
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

}  // namespace nibble
