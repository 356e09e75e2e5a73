#include "trainer/critic.h"

#include <ATen/core/grad_mode.h>

#include <array>

#include "core/base/context.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/checkpoint/hf_directory.h"
#include "core/comm/reduce.h"
#include "core/models/checkpoint_tensors.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "trainer/bf16_rows.h"
#include "trainer/load_spec.h"
#include "trainer/state/train_checkpoint.h"
#include "trainer/tape_values.h"
#include "trainer/trainer.h"
#include "trainer/update_work.h"

namespace nibble {
namespace {

// Rounding of BF16 moments draws from another stream than the model's.
constexpr uint64_t kSeedOffset = 0x637269746963;  // "critic"

ModelSpec critic_spec(const std::filesystem::path& directory, const Mesh& mesh) {
  return make_model_spec(value_model(load_spec(directory, mesh).config));
}

std::vector<double> widened(std::span<const float> values) {
  return {values.begin(), values.end()};
}

// By target: several may follow one row.
std::vector<float> of_targets(const std::vector<float>& by_row, const PackedBatch& batch) {
  std::vector<float> values;
  values.reserve(batch.target_row.size());
  for (const int64_t row : batch.target_row) values.push_back(by_row[static_cast<size_t>(row)]);
  return values;
}

std::vector<float> of_rows(std::span<const double> by_target, const PackedBatch& batch) {
  std::vector<double> sums(batch.tokens.size());
  for (size_t i = 0; i < by_target.size(); ++i) {
    sums[static_cast<size_t>(batch.target_row[i])] += by_target[i];
  }
  return {sums.begin(), sums.end()};
}

}  // namespace

Critic::Critic(const TrainerConfig& config, DeviceKind state_home, ProcessGroup& group,
               const MeshGroups& groups, const ops::Backend& backend)
    : directory_(config.critic->model),
      optimizer_(critic_optimizer(*config.critic, config.optimizer)),
      value_clip_(config.critic->value_clip),
      aggregation_(config.algorithm.loss.aggregation),
      recompute_(config.recompute),
      group_(group),
      groups_(groups),
      backend_(backend),
      config_json_(read_hf_config(directory_).dump()),
      spec_(critic_spec(directory_, groups.mesh())),
      layout_{&spec_.table, plan_bf16(spec_.table), groups.mesh(), groups.rank()},
      rope_(backend.place(
          make_rope_table(spec_.config.rope, spec_.config.head_dim, config.max_positions))),
      state_home_(state_home),
      rounding_seed_(config.seed + kSeedOffset),
      weights_(layout_, groups, backend.weight_kernels()) {
  weights_.enable_gradients();
  start();
}

void Critic::start() {
  const HfDirectory body(directory_);
  const ParameterTable stored = load_spec(directory_, groups_.mesh()).table;
  check_checkpoint_tensors(body, stored, checkpoint_plan(body, stored));
  state_ = {};  // gone before its successor is there
  state_ = OptimizerState(layout_, state_home_, optimizer_.state);
  state_.rounding_seed = rounding_seed_;
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    if (p == spec_.table.lm_head) continue;  // zeros
    const ParameterSpec& parameter = spec_.table.at(p);
    state_.master[static_cast<size_t>(p)].assign(
        widened_rows(load_bf16(body, parameter), layout_.shard(p), parameter.cols));
  }
  pack();
}

void Critic::pack() {
  weights_.set_shards(nullptr);  // nobody else holds them: their memory is packed into again
  weights_.set_shards(pack_shards(layout_, state_.master, backend_.weight_kernels(), buffers_));
}

at::Tensor Critic::run(const PackedBatch& batch) {
  weights_.begin_pass();
  TapeInputs inputs{batch, {}, &backend_};
  inputs.groups = {groups_.tensor(), groups_.expert(), groups_.context()};
  inputs.wants_routes = false;
  inputs.recompute = recompute_;
  return run_values(spec_, weights_, rope_, inputs);
}

std::vector<float> Critic::values_of(const at::Tensor& values) const {
  std::vector<float> by_row = host_values(values);
  groups_.check();
  return by_row;
}

std::vector<float> Critic::values(const PackedBatch& batch) {
  const at::NoGradGuard no_grad;
  return of_targets(values_of(run(batch)), batch);
}

ValueLoss Critic::backpropagate(const UpdateWork& work) {
  weights_.zero_gradients();
  std::array<double, 2> sums{};
  for (size_t b = 0; b < work.batches.size(); ++b) {
    const MicroBatch& batch = work.batches[b];
    const at::Tensor by_row = run(batch.packed);
    const std::vector<double> current = widened(of_targets(values_of(by_row), batch.packed));
    const std::vector<double> old = widened(work.values[b]);
    std::vector<double> grad(current.size());
    const ValueLoss loss =
        value_loss({current, old, work.returns[b], batch.mask, batch.sample_begin}, value_clip_,
                   aggregation_, work.totals, grad);
    sums[0] += loss.loss;
    sums[1] += loss.clip_share;
    const std::vector<float> grad_by_row = of_rows(grad, batch.packed);
    run_backward({{by_row, grad_by_row}}, weights_);
  }
  if (!groups_.counts_figures()) sums = {};
  all_reduce_sum(group_, sums);
  return {sums[0], sums[1]};
}

double Critic::gradient_norm() {
  device_memory(backend_.kind()).finish();
  groups_.check();  // a gradient of a lost rank must not become an update
  return global_grad_norm(weights_.gradients(), group_, backend_.weight_kernels());
}

UpdateStats Critic::take_step(double grad_norm) {
  weights_.set_shards(nullptr);  // as in pack()
  auto buffer = buffers_.acquire(layout_, backend_.kind());
  const UpdateStats stats = with_context("critic", [&] {
    return state_.update(layout_, optimizer_, weights_.gradients(), grad_norm, group_,
                         backend_.weight_kernels(), *buffer);
  });
  weights_.set_shards(std::move(buffer));
  return stats;
}

void Critic::load(const std::filesystem::path& checkpoint) {
  if (load_critic_checkpoint(checkpoint, layout_, state_)) return pack();
  if (group_.rank() == 0) {
    get_logger("trainer")->warn("checkpoint '{}' has no critic: it starts anew from '{}'",
                                checkpoint.string(), directory_.string());
  }
  start();
}

}  // namespace nibble
