#include "core/kernels/gptq.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/kernels/isa.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kRowGrain = 16;

// The first of the best; the largest magnitude's own scale comes first.
uint16_t scale_of(const ScaleJob& job, const quant::GridLimits& limits, const IsaTable& isa,
                  const uint16_t* weight, const float* importance) {
  const int64_t count = job.shape.group;
  float absmax = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    absmax = std::max(absmax, std::fabs(quant::bf16_to_float(weight[i])));
  }
  std::array<uint16_t, kScaleLanes> scale;
  scale.fill(quant::group_scale(absmax, job.grid));
  if (job.search == ScaleSearch::kNone || absmax == 0.0f) return scale[0];
  for (int i = 0; i < kScaleCandidates; ++i) {
    scale[static_cast<size_t>(i) + 1] = quant::group_scale(absmax * scale_factor(i), job.grid);
  }
  std::array<float, kScaleLanes> value;
  std::transform(scale.begin(), scale.end(), value.begin(), quant::bf16_to_float);
  std::array<float, kScaleLanes> error;
  isa.group_errors(weight, importance, count, limits, value.data(), error.data());
  size_t best = 0;
  for (size_t i = 1; i < error.size(); ++i) {
    if (error[i] < error[best]) best = i;
  }
  return scale[best];
}

}  // namespace

void group_scales(const ScaleJob& job, const Parallel& parallel) {
  const int64_t groups = job.shape.groups_per_row();
  const quant::GridLimits limits = quant::grid_limits(job.grid);
  const IsaTable& isa = isa_table(selected_isa());
  parallel.run(job.shape.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * groups; i < end * groups; ++i) {
      const int64_t first = i % groups * job.shape.group;
      job.scale[i] = scale_of(job, limits, isa, job.weight + i * job.shape.group,
                              job.importance == nullptr ? nullptr : job.importance + first);
    }
  });
}

void gptq_block(const GptqBlock& block, const Parallel& parallel) {
  const quant::GridLimits limits = quant::grid_limits(block.grid);
  const IsaTable& isa = isa_table(selected_isa());
  parallel.run((block.rows + kRowGrain - 1) / kRowGrain, 1, [&](int64_t begin, int64_t end) {
    isa.gptq_rows(block, limits, begin * kRowGrain, std::min(end * kRowGrain, block.rows));
  });
}

}  // namespace nibble::kernels
