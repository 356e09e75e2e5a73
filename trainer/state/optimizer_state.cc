#include "trainer/state/optimizer_state.h"

#include <cmath>
#include <string>

#include "core/base/fail.h"
#include "core/comm/reduce.h"
#include "trainer/algo/grad_clip.h"
#include "trainer/state/calibrated_start.h"

namespace nibble {

OptimizerState::OptimizerState(const ShardLayout& layout, DeviceKind device, MomentType moments) {
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const auto count = static_cast<size_t>(layout.trained_elements(p));
    master.emplace_back(count, device);
    if (moments == MomentType::kBf16) {
      m_bf16.emplace_back(count, device);
      v_bf16.emplace_back(count, device);
    } else {
      m.emplace_back(count, device);
      v.emplace_back(count, device);
    }
  }
}

void OptimizerState::hold_scales(const ShardLayout& layout, const PackedShards& packed) {
  std::vector<Array<uint16_t>> scales;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const ParameterSpec& parameter = layout.table->at(p);
    const Array<uint16_t> on_host =
        packed.parameters[static_cast<size_t>(p)].scale.to(DeviceKind::kCpu);
    if (layout.quantized(p)) {
      check_held_scales("the scales derived after update " + std::to_string(updates), parameter,
                        layout.shard(p).begin, {on_host.data(), on_host.size()},
                        parameter.cols / layout.plan.config.group_size);
    }
    scales.push_back(on_host.to(master[static_cast<size_t>(p)].device()));
  }
  held_scale = std::move(scales);
}

double global_grad_norm(std::span<const Array<float>> gradients, ProcessGroup& group,
                        const kernels::WeightKernels& kernels) {
  std::vector<std::span<const float>> arrays;
  for (const auto& gradient : gradients) arrays.emplace_back(gradient.data(), gradient.size());
  double squares = kernels.sum_of_squares(arrays);
  all_reduce_sum(group, std::span(&squares, 1));
  return std::sqrt(squares);
}

std::vector<kernels::AdamwJob> OptimizerState::update_jobs(
    const ShardLayout& layout, const OptimizerConfig& config,
    std::span<const Array<float>> gradients) {
  std::vector<kernels::AdamwJob> jobs;
  for (size_t p = 0; p < master.size(); ++p) {
    const ParameterSpec& whole = layout.table->at(static_cast<int64_t>(p));
    kernels::AdamwJob job;
    job.master = master[p].data();
    job.grad = gradients[p].data();
    job.count = std::ssize(master[p]);
    job.weight_decay = whole.is_vector() ? 0.0f : static_cast<float>(config.weight_decay);
    if (has_bf16_moments()) {
      const int64_t first = layout.shard(static_cast<int64_t>(p)).begin * whole.cols;
      job.bf16 = {m_bf16[p].data(), v_bf16[p].data(), static_cast<uint64_t>(first), rounding_seed,
                  static_cast<uint32_t>(p)};
    } else {
      job.m = m[p].data();
      job.v = v[p].data();
    }
    jobs.push_back(job);
  }
  return jobs;
}

UpdateStats OptimizerState::update(const ShardLayout& layout, const OptimizerConfig& config,
                                   std::span<const Array<float>> gradients, double grad_norm,
                                   ProcessGroup& group, const kernels::WeightKernels& kernels,
                                   PackedShards& packed) {
  UpdateStats stats;
  stats.grad_norm = grad_norm;
  if (!std::isfinite(stats.grad_norm)) {
    fail(ErrorCode::kInternal, "the gradient norm of update {} is not finite; nothing was updated",
         updates + 1);
  }
  const LrSchedule schedule{config.schedule,     config.lr,         config.min_lr, 0.0,
                            config.warmup_steps, config.decay_steps};
  stats.lr = learning_rate(schedule, updates);
  const double clip =
      config.clip_norm > 0.0 ? grad_clip_coefficient(stats.grad_norm, config.clip_norm) : 1.0;
  const kernels::AdamwParams params{static_cast<float>(stats.lr),
                                    static_cast<float>(config.beta1),
                                    static_cast<float>(config.beta2),
                                    static_cast<float>(config.eps),
                                    0.0f,
                                    updates + 1,
                                    static_cast<float>(clip)};
  const std::vector<kernels::AdamwJob> jobs = update_jobs(layout, config, gradients);
  const auto [problem, projected] =
      kernels.adamw_pack(jobs, pack_jobs(layout, master, held_scale, packed), params);
  ++updates;
  if (problem) {
    fail(ErrorCode::kInternal,
         "after update {} at learning rate {}: {}; go on from the last checkpoint with a lower "
         "optimizer.lr",
         updates, stats.lr, packing_problem_text(layout, *problem));
  }
  if (holds_scales()) {
    auto count = static_cast<double>(projected);
    all_reduce_sum(group, std::span(&count, 1));
    stats.projected = static_cast<int64_t>(count);
  }
  return stats;
}

}  // namespace nibble
