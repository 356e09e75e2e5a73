#include "trainer/trainer.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/comm/reduce.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/ops/cpu_backend.h"
#include "trainer/algo/entropy_bonus.h"
#include "trainer/tape_values.h"
#include "trainer/update_work.h"

namespace nibble {
namespace {

ModelSpec load_spec(const std::filesystem::path& directory, const Mesh& mesh) {
  const ModelConfig config =
      parse_model_config(read_hf_config(directory), (directory / "config.json").string());
  if (const auto problem = mesh_problem(config, mesh)) {
    fail(ErrorCode::kInvalidArgument, "'{}' cannot be shared so: {}", directory.string(), *problem);
  }
  return make_model_spec(config);
}

// Of several updates, the projections add up; a jump is the last one's.
void add_held(const std::optional<HeldStats>& update, std::optional<HeldStats>& step) {
  if (!update) return;
  if (!step) step.emplace();
  step->projected += update->projected;
  if (update->rescale_jump) step->rescale_jump = update->rescale_jump;
}

}  // namespace

// Figures of one update, of all micro-batches and ranks.
struct Trainer::Sums {
  PolicyLoss loss;
  double entropy = 0.0, diff = 0.0, diff_max = 0.0, kl = 0.0, kl_k1 = 0.0, tokens = 0.0,
         computed = 0.0;
  PositionGap gap;
  std::vector<int64_t> expert_tokens;  // [MoE layers, experts]

  // Sums over ranks, where `counts` says whether this one's figures are its own. Collective.
  void all_reduce(ProcessGroup& group, bool counts) {
    // A maximum of non-negative floats orders like its bits.
    for (double* most : {&diff_max, &loss.ratio_max}) {
      *most = std::bit_cast<double>(all_reduce_max(group, std::bit_cast<int64_t>(*most)));
    }
    PositionGap::Sums places = gap.sums();
    std::vector<double*> all = {&entropy, &diff, &kl, &kl_k1, &tokens, &computed};
    for (double* value : loss.summed()) all.push_back(value);
    for (double& value : places) all.push_back(&value);
    std::vector<double> loads(expert_tokens.begin(), expert_tokens.end());
    for (double& value : loads) all.push_back(&value);
    std::vector<double> values;
    for (const double* value : all) values.push_back(counts ? *value : 0.0);
    all_reduce_sum(group, values);
    for (size_t i = 0; i < all.size(); ++i) *all[i] = values[i];
    gap = PositionGap(places);
    expert_tokens.assign(loads.begin(), loads.end());
  }
};

Trainer::Trainer(TrainerConfig config, const MeshGroups& groups)
    : Trainer(std::move(config), groups.owners(Sharing::kAll), groups, ops::cpu_backend()) {}

Trainer::Trainer(TrainerConfig config, ProcessGroup& group, const MeshGroups& groups,
                 const ops::Backend& backend)
    : config_(std::move(config)),
      group_(group),
      groups_(groups),
      backend_(backend),
      spec_(load_spec(config_.model, groups.mesh())),
      train_layout_{&spec_.table, config_.train_plan, groups.mesh(), groups.rank()},
      serve_layout_{&spec_.table, config_.serve_plan, groups.mesh(), groups.rank()},
      rope_(backend.place(
          make_rope_table(spec_.config.rope, spec_.config.head_dim, config_.max_positions))),
      state_(train_layout_, state_device()),
      weights_(train_layout_, groups, backend.weight_kernels()) {
  validate(config_.algorithm.loss);
  load_masters();
  if (may_need_reference(config_.algorithm)) load_reference();
  weights_.enable_gradients();
  repack();
}

Trainer::~Trainer() = default;

DeviceKind Trainer::state_device() const {
  return config_.optimizer.offload ? offload_kind(backend_.kind()) : backend_.kind();
}

void Trainer::load_reference() {
  const HfDirectory model(config_.reference);
  const ShardLayout layout{&spec_.table, plan_bf16(spec_.table), groups_.mesh(), groups_.rank()};
  const ShardHome home = config_.offload_reference ? ShardHome::kHost : ShardHome::kDevice;
  const DeviceKind device =
      home == ShardHome::kHost ? offload_kind(backend_.kind()) : backend_.kind();
  auto shards = std::make_shared<PackedShards>();
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    const ParameterSpec& parameter = spec_.table.at(p);
    const std::vector<uint16_t> whole = load_bf16(model, parameter);
    const RowShard shard = layout.shard(p);
    const auto rows = std::span<const uint16_t>(whole).subspan(
        static_cast<size_t>(shard.begin * parameter.cols),
        static_cast<size_t>(shard.rows() * parameter.cols));
    StoredParameter stored{Array<uint16_t>(rows, device), {}, {}};
    shards->parameters.push_back(std::move(stored));
  }
  reference_ = std::make_unique<GatheredWeights>(layout, groups_, backend_.weight_kernels(), home);
  reference_->set_shards(std::move(shards));
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
  const bool same_plan = config_.train_plan.quantized == config_.serve_plan.quantized;
  serving_ =
      same_plan ? training_ : pack_shards(serve_layout_, state_.master, kernels, serve_buffers_);
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

Trainer::Step Trainer::take_step() {
  Step step;
  Stopwatch clock;
  device_memory(backend_.kind()).finish();
  groups_.check();  // a gradient of a lost rank must not become an update
  auto buffer = train_buffers_.acquire(train_layout_, backend_.kind());
  step.update = state_.update(train_layout_, config_.optimizer, weights_.gradients(), group_,
                              backend_.weight_kernels(), *buffer);
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

std::vector<float> Trainer::forward_log_probs(GatheredWeights& weights, const PackedBatch& batch,
                                              std::vector<at::Tensor> replay) {
  const at::NoGradGuard no_grad;
  return values_of(run_tape(weights, batch, std::move(replay)).log_prob);
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

TapeResult Trainer::run_tape(GatheredWeights& weights, const PackedBatch& batch,
                             std::vector<at::Tensor> replay) {
  weights.begin_pass();
  const ops::RankGroups ranks{groups_.tensor(), groups_.expert()};
  return run_log_probs(spec_, weights, rope_, {batch, std::move(replay), &backend_, ranks, false},
                       static_cast<float>(config_.temperature), ActivationType::kFloat32);
}

std::vector<float> Trainer::log_probs(std::span<const int32_t> ids) {
  return forward_log_probs(weights_, pack_sequence(ids));
}

TrainMetrics Trainer::train(std::span<const std::vector<SampleGroup>> updates, int64_t step) {
  TrainMetrics metrics;
  metrics.has_reference = needs_reference(step);
  const std::vector<UpdateWork> plan = plan_updates(updates, metrics);
  for (size_t u = 0; u < plan.size(); ++u) {
    run_update(plan[u], u == 0, metrics);
    const Step done = take_step();
    metrics.update = done.update;
    metrics.changes = done.changes;
    add_held(done.held, metrics.held);
    metrics.optimizer_ms += done.optimizer_ms;
    metrics.pack_ms += done.pack_ms;
  }
  metrics.gathered = weights_.take_bytes();
  return metrics;
}

void Trainer::run_update(const UpdateWork& work, bool first, TrainMetrics& metrics) {
  weights_.zero_gradients();
  Sums sums;
  if (config_.algorithm.routing_replay) {  // ranks without a sample have nothing to count
    sums.expert_tokens.resize(
        static_cast<size_t>(spec_.config.num_moe_layers() * spec_.config.moe.num_experts));
  }
  for (size_t b = 0; b < work.batches.size(); ++b) run_micro_batch(work, b, sums, metrics);
  sums.all_reduce(group_, counts_figures());
  metrics.loss = sums.loss;
  const double tokens = std::max(1.0, sums.tokens);
  metrics.entropy = sums.entropy / tokens;
  metrics.kl_reference = sums.kl / tokens;
  metrics.kl_reference_k1 = sums.kl_k1 / tokens;
  metrics.response_tokens += static_cast<int64_t>(sums.tokens);
  metrics.computed_tokens += static_cast<int64_t>(sums.computed);
  if (!first) return;
  if (config_.algorithm.routing_replay) {
    metrics.experts = expert_load(sums.expert_tokens, spec_.config.moe.num_experts);
  }
  metrics.log_prob_diff_mean = sums.diff / tokens;
  metrics.log_prob_diff_max = sums.diff_max;
  metrics.gap_by_position = sums.gap.sums();
}

void Trainer::run_micro_batch(const UpdateWork& work, size_t index, Sums& sums,
                              TrainMetrics& metrics) {
  const MicroBatch& batch = work.batches[index];
  const bool with_reference = metrics.has_reference;
  Stopwatch clock;
  std::vector<float> reference;
  if (!work.reference.empty()) {
    reference = work.reference[index];
  } else if (with_reference) {
    reference = forward_log_probs(*reference_, batch.packed);
  }
  metrics.reference_ms += clock.restart_ms();

  const bool replays = config_.algorithm.routing_replay && !batch.is_idle;
  if (replays) count_experts(batch, spec_.config.moe.num_experts, sums.expert_tokens);
  const TapeResult result = run_tape(weights_, batch.packed, routes_of(batch));
  const std::vector<float> current = values_of(result.log_prob);
  const std::vector<float> entropy = values_of(result.entropy);
  const size_t count = current.size();
  // Taken before the first update, the trainer's own log-probabilities are the old ones. With
  // several updates a pass has computed them, or the rollout's are the same bits.
  const bool is_own = !config_.algorithm.use_rollout_logprobs && work.old_logp.empty() &&
                      config_.optimizer.steps_per_rollout == 1;
  const std::span<const float> old = is_own                  ? current
                                     : work.old_logp.empty() ? batch.rollout_log_prob
                                                             : work.old_logp[index];
  const PolicyLossConfig& loss = config_.algorithm.loss;
  std::vector<float> grad(count, 0.0f), grad_entropy;
  sums.loss += policy_loss<float>({current, old, batch.rollout_log_prob, reference, batch.advantage,
                                   batch.mask, batch.sample_begin},
                                  loss, work.totals, grad);
  if (loss.entropy_coef != 0.0) {
    grad_entropy.resize(count);
    sums.loss.loss +=
        entropy_bonus({entropy, batch.mask, batch.sample_begin}, loss, work.totals, grad_entropy);
  }
  size_t sample = 0;
  for (size_t i = 0; i < count; ++i) {
    while (static_cast<int64_t>(i) >= batch.sample_begin[sample + 1]) ++sample;
    if (batch.mask[i] == 0) continue;
    const double diff =
        std::fabs(static_cast<double>(current[i]) - static_cast<double>(batch.rollout_log_prob[i]));
    sums.diff += diff;
    sums.gap.add(static_cast<int64_t>(i) - batch.sample_begin[sample], diff);
    sums.diff_max = std::max(sums.diff_max, diff);
    sums.entropy += static_cast<double>(entropy[i]);
    if (with_reference) {
      sums.kl += kl_term(KlEstimator::kK3, current[i], reference[i]).value;
      sums.kl_k1 += kl_term(KlEstimator::kK1, current[i], reference[i]).value;
    }
    sums.tokens += 1.0;
  }
  if (!batch.is_idle) sums.computed += static_cast<double>(batch.packed.tokens.size());
  run_backward({{result.log_prob, grad}, {result.entropy, grad_entropy}}, weights_);
  metrics.forward_backward_ms += clock.elapsed_ms();
}

void Trainer::save(const std::filesystem::path& directory, const TrainProgress& progress) {
  const OrderedJson config = served_config(read_hf_config(config_.model), config_.serve_plan);
  TrainProgress complete = progress;
  complete.updates = state_.updates;
  save_train_checkpoint(directory, train_layout_, state_, complete, config.dump(2) + "\n", group_,
                        backend_.weight_kernels());
}

TrainProgress Trainer::load(const std::filesystem::path& directory) {
  const TrainProgress progress = load_train_checkpoint(directory, train_layout_, state_);
  serving_.reset();
  repack();
  return progress;
}

}  // namespace nibble
