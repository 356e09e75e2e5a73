#include "trainer/trainer.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/base/mapped_memory.h"
#include "core/comm/reduce.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/torch_parallel.h"
#include "trainer/draft_riders.h"
#include "trainer/load_spec.h"
#include "trainer/state/frozen_base.h"
#include "trainer/tape_values.h"
#include "trainer/update_work.h"

namespace nibble {

Trainer::Trainer(TrainerConfig config, const MeshGroups& groups)
    : Trainer(std::move(config), groups.owners(Sharing::kAll), groups, ops::cpu_backend()) {}

Trainer::Trainer(TrainerConfig config, ProcessGroup& group, const MeshGroups& groups,
                 const ops::Backend& backend)
    : config_(std::move(config)),
      group_(group),
      groups_(groups),
      backend_(backend),
      spec_(load_spec(config_.model, groups.mesh(), config_.lora)),
      train_layout_{&spec_.table, config_.train_plan, groups.mesh(), groups.rank()},
      serve_layout_{&spec_.table, config_.serve_plan, groups.mesh(), groups.rank()},
      rope_(backend.place(
          make_rope_table(spec_.config.rope, spec_.config.head_dim, config_.max_positions))),
      state_(make_state()),
      guard_(config_.guards),
      weights_(train_layout_, groups, backend.weight_kernels()),
      train_buffers_(fixed_parameters(has_one_plan())),
      serve_buffers_(has_one_plan() ? FixedParameters() : fixed_parameters(true)) {
  validate(config_.algorithm.loss);
  NIBBLE_CHECK(has_one_plan() || !config_.lora, "adapters beside weights of two plans");
  load_masters();
  load_frozen_models();
  weights_.enable_gradients();
  repack();
  if (config_.critic) critic_.emplace(config_, state_device(), group_, groups_, backend_);
  if (config_.lora) {
    base_digest_ =
        frozen_digest(train_layout_, training_->parameters, backend.weight_kernels(), group_);
  }
}

Trainer::~Trainer() = default;

FixedParameters Trainer::fixed_parameters(bool with_riders) const {
  const DeviceKind device = backend_.kind();
  const kernels::Parallel& parallel = ops::torch_parallel();
  FixedParameters fixed;
  if (config_.lora) {
    const FrozenBase base(config_.base, spec_.table, config_.train_plan);
    fixed.frozen = load_frozen_rows(base, train_layout_, device, parallel);
  }
  if (config_.draft && with_riders) {
    fixed.riders = load_draft_riders(*config_.draft, group_.rank(), device, parallel);
  }
  return fixed;
}

DeviceKind Trainer::state_device() const {
  if (!config_.optimizer.mapped_in.empty()) return DeviceKind::kMappedFile;
  return config_.optimizer.offload ? offload_kind(backend_.kind()) : backend_.kind();
}

OptimizerState Trainer::make_state() const {
  if (const auto& directory = config_.optimizer.mapped_in; !directory.empty()) {
    if (backend_.kind() != DeviceKind::kCpu) {
      fail(ErrorCode::kInvalidArgument,
           "optimizer.mapped_in is '{}', but a GPU does not reach mapped files: remove it, or set "
           "optimizer.offload or cluster.device: cpu",
           directory.string());
    }
    use_mapped_memory(directory);
  }
  OptimizerState state(train_layout_, state_device(), config_.optimizer.state);
  state.rounding_seed = config_.seed;
  return state;
}

void Trainer::load_frozen_models() {
  const ShardHome home = config_.offload_reference ? ShardHome::kHost : ShardHome::kDevice;
  if (may_need_reference(config_.algorithm)) {
    reference_.emplace(config_.reference, load_spec(config_.model, groups_.mesh()), groups_,
                       backend_, home, config_.max_positions);
  }
  if (config_.teacher.empty()) return;
  teacher_.emplace(config_.teacher, load_spec(config_.teacher, groups_.mesh()), groups_, backend_,
                   home, config_.max_positions);
}

bool Trainer::needs_reference(int64_t step) const {
  const AlgorithmConfig& algorithm = config_.algorithm;
  if (algorithm.reference == ReferenceMode::kNever) return false;
  if (algorithm.reference == ReferenceMode::kAlways || trains_on_reference(algorithm)) return true;
  return algorithm.kl_metric_every > 0 && step % algorithm.kl_metric_every == 0;
}

void Trainer::repack() {
  use(pack_shards(train_layout_, state_.master, backend_.weight_kernels(), train_buffers_,
                  state_.held_scale),
      nullptr);
}

void Trainer::use(std::shared_ptr<const PackedShards> packing, PackChanges* changes) {
  const auto& kernels = backend_.weight_kernels();
  const auto previous = serving_;
  training_ = std::move(packing);
  weights_.set_shards(training_);
  serving_ = has_one_plan() ? training_
                            : pack_shards(serve_layout_, state_.master, kernels, serve_buffers_);
  if (changes != nullptr && previous) {
    *changes = count_changes(serve_layout_, *previous, *serving_, kernels);
    sum_over_ranks(*changes);
  }
}

void Trainer::sum_over_ranks(PackChanges& changes) {
  std::vector<double*> places;
  const auto add = [&](PartChanges& part) {
    for (double* count : part.counts()) places.push_back(count);
  };
  for (PartChanges& layer : changes.layers) add(layer);
  add(changes.rest);
  std::vector<double> counts(places.size());
  for (size_t i = 0; i < places.size(); ++i) counts[i] = *places[i];
  all_reduce_sum(group_, counts);
  for (size_t i = 0; i < places.size(); ++i) *places[i] = counts[i];
}

std::shared_ptr<const PackedShards> Trainer::rescale(const PackedShards& held, HeldStats& stats) {
  const auto& kernels = backend_.weight_kernels();
  auto derived = pack_shards(train_layout_, state_.master, kernels, train_buffers_);
  PackChanges jump = count_changes(train_layout_, held, *derived, kernels);
  sum_over_ranks(jump);
  const PartChanges total = jump.total();
  stats.rescale_jump = total.changed_codes / total.codes;
  state_.hold_scales(train_layout_, *derived);
  if (group_.rank() == 0) {
    get_logger("trainer")->info("scales derived anew update={} codes_changed_share={:.6f}",
                                state_.updates, *stats.rescale_jump);
  }
  return derived;
}

double Trainer::gradient_norm() {
  device_memory(backend_.kind()).finish();
  groups_.check();  // a gradient of a lost rank must not become an update
  return global_grad_norm(weights_.gradients(), group_, backend_.weight_kernels());
}

Trainer::Step Trainer::take_step(double grad_norm) {
  Step step;
  Stopwatch clock;
  auto buffer = train_buffers_.acquire(train_layout_, backend_.kind());
  step.update = state_.update(train_layout_, config_.optimizer, weights_.gradients(), grad_norm,
                              group_, backend_.weight_kernels(), *buffer);
  step.optimizer_ms = clock.restart_ms();
  std::shared_ptr<const PackedShards> packing = std::move(buffer);
  if (state_.holds_scales()) {
    step.held = HeldStats{step.update.projected, {}};
    const bool is_due = config_.rescale_every > 0 && state_.updates % config_.rescale_every == 0;
    if (is_due) packing = rescale(*packing, *step.held);
  }
  use(std::move(packing), &step.changes);
  step.pack_ms = clock.elapsed_ms();
  return step;
}

std::vector<float> Trainer::forward_log_probs(const TapeModel& model, const PackedBatch& batch,
                                              std::vector<at::Tensor> replay) {
  const at::NoGradGuard no_grad;
  return values_of(run_tape(model, batch, std::move(replay)).log_prob);
}

std::vector<at::Tensor> Trainer::routes_of(const MicroBatch& batch) const {
  if (!config_.algorithm.routing_replay || batch.is_idle) return {};
  return replay_of(batch, spec_.config, backend_);
}

std::vector<float> Trainer::values_of(const at::Tensor& tensor) const {
  std::vector<float> values = host_values(tensor);
  groups_.check();
  return values;
}

TapeResult Trainer::run_tape(const TapeModel& model, const PackedBatch& batch,
                             std::vector<at::Tensor> replay) {
  model.weights.begin_pass();
  TapeInputs inputs{batch, std::move(replay), &backend_};
  inputs.groups = {groups_.tensor(), groups_.expert(), groups_.context()};
  inputs.wants_routes = false;
  inputs.recompute = config_.recompute;
  return run_log_probs(model.spec, model.weights, model.rope, inputs,
                       static_cast<float>(config_.temperature), ActivationType::kFloat32);
}

std::vector<float> Trainer::log_probs(std::span<const int32_t> ids) {
  return forward_log_probs(own_model(), pack_sequence(ids));
}

OrderedJson Trainer::checkpoint_config() const {
  OrderedJson config = served_config(read_hf_config(config_.model), config_.serve_plan);
  if (!config_.lora) return config;
  OrderedJson& adapters = config[kLoraKey] = lora_shape_json(*config_.lora);
  adapters["base"] = std::filesystem::absolute(config_.base).lexically_normal().string();
  adapters["base_sha256"] = base_digest_;
  return config;
}

std::unique_ptr<const CheckpointSnapshot> Trainer::snapshot(const TrainProgress& progress) const {
  const OrderedJson config = checkpoint_config();
  TrainProgress complete = progress;
  complete.updates = state_.updates;
  complete.recent_grad_norms = guard_.recent_norms();
  std::optional<StateSource> critic;
  if (critic_) critic.emplace(critic_->state());
  return std::make_unique<const CheckpointSnapshot>(
      StateSource{train_layout_, state_, config.dump(2) + "\n"}, critic ? &*critic : nullptr,
      complete, group_.rank(), group_.world());
}

void Trainer::save(const std::filesystem::path& directory, const TrainProgress& progress) {
  save_train_checkpoint(directory, *snapshot(progress), group_);
}

TrainProgress Trainer::load(const std::filesystem::path& directory) {
  const CheckpointReader checkpoint(directory);
  check_same_adapters(checkpoint, config_.lora);
  if (config_.lora && checkpoint.base()->digest != base_digest_) {
    fail(ErrorCode::kDataLoss,
         "checkpoint '{}' was trained beside the weights in '{}' (digest {}), and '{}' has others "
         "({}): resume it with the model.int4 or model.path that it has",
         directory.string(), checkpoint.base()->directory.string(), checkpoint.base()->digest,
         config_.base.string(), base_digest_);
  }
  const TrainProgress progress = load_train_checkpoint(directory, train_layout_, state_);
  guard_.restore(progress.recent_grad_norms);
  serving_.reset();
  repack();
  if (critic_) {
    critic_->load(directory);
  } else if (group_.rank() == 0 && CheckpointReader(directory).critic() != nullptr) {
    get_logger("trainer")->warn("the critic of checkpoint '{}' is ignored: this run has none",
                                directory.string());
  }
  return progress;
}

}  // namespace nibble
