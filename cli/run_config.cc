#include "cli/run_config.h"

#include <algorithm>
#include <thread>

#include "cli/algorithm_checks.h"
#include "cli/job_kind.h"
#include "cli/job_plans.h"
#include "cli/lora_checks.h"
#include "cli/optimizer_checks.h"
#include "cli/rollout_checks.h"
#include "coordinator/held_out.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/checkpoint/hf_directory.h"
#include "core/models/weights.h"
#include "core/spec/model_config.h"

namespace nibble {
namespace {

void check_batch(const RunConfig& c, const ConfigSource& source) {
  const int64_t sampled = c.rollout.prompts_per_step * c.rollout.samples_per_prompt;
  const int64_t trained = c.optimizer.global_batch * c.optimizer.steps_per_rollout;
  if (sampled != trained) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.prompts_per_step x rollout.samples_per_prompt = {} samples, but "
         "optimizer.global_batch x optimizer.steps_per_rollout = {} ({}, {}); make them equal",
         sampled, trained, source.where("rollout.prompts_per_step"),
         source.where("optimizer.global_batch"));
  }
  if (c.rollout.prompts_per_step % c.optimizer.steps_per_rollout != 0) {
    fail(ErrorCode::kInvalidArgument,
         "optimizer.steps_per_rollout = {} does not divide rollout.prompts_per_step = {} ({})",
         c.optimizer.steps_per_rollout, c.rollout.prompts_per_step,
         source.where("optimizer.steps_per_rollout"));
  }
}

void check_sizes(const RunConfig& c, const ConfigSource& source) {
  constexpr int64_t kMaxThreads = 1024;
  if (c.cluster.threads_per_worker > kMaxThreads) {
    fail(ErrorCode::kInvalidArgument,
         "cluster.threads_per_worker is {} ({}); it must be at most {}",
         c.cluster.threads_per_worker, source.where("cluster.threads_per_worker"), kMaxThreads);
  }
  if (is_supervised(c)) return;
  // A prompt has at least one token; the last new one is never put into the cache.
  const auto want = [&](const char* key, int64_t value) {
    if (value == 0 || value >= c.rollout.max_new_tokens) return;
    fail(ErrorCode::kInvalidArgument,
         "{} = {} ({}) leaves no room for rollout.max_new_tokens = {}: raise it, or lower "
         "max_new_tokens",
         key, value, source.where(key), c.rollout.max_new_tokens);
  };
  check_rollout(c, source);
  want("rollout.max_positions", c.rollout.max_positions);
  want("rollout.kv_tokens", c.rollout.kv_tokens);
}

void check_eval(const RunConfig& c, const ConfigSource& source) {
  if (const std::string problem = held_out_problem(c.eval); !problem.empty()) {
    fail(ErrorCode::kInvalidArgument, "{} ({})", problem,
         source.where(problem.substr(0, problem.find(':'))));
  }
  for (size_t i = 0; i < c.eval.sets.size(); ++i) {
    const int64_t tokens = c.eval.sets[i].max_new_tokens.value_or(1);
    const std::string key = fmt::format("eval.sets.{}.max_new_tokens", i);
    const auto want = [&](const char* limit, int64_t value) {
      if (value == 0 || value >= tokens) return;
      fail(ErrorCode::kInvalidArgument, "{} = {} ({}) does not fit into {} = {} ({})", key, tokens,
           source.where(key), limit, value, source.where(limit));
    };
    want("rollout.max_positions", c.rollout.max_positions);
    want("rollout.kv_tokens", c.rollout.kv_tokens);
  }
}

void check_paths(const RunConfig& c, const ConfigSource& source) {
  const auto want = [&](const std::string& key, const std::filesystem::path& path) {
    if (path.empty()) {
      fail(ErrorCode::kInvalidArgument, "{} is not set; it must name a file or directory", key);
    }
    if (!std::filesystem::exists(path)) {
      fail(ErrorCode::kInvalidArgument, "{} ({}): '{}' does not exist", key, source.where(key),
           path.string());
    }
  };
  want("model.path", c.model.path);
  want("data.train", c.data.train);
  if (!c.model.int4.empty()) want("model.int4", c.model.int4);
  if (!c.model.reference.empty()) want("model.reference", c.model.reference);
  if (!c.model.teacher.empty()) want("model.teacher", c.model.teacher);
  if (!c.critic.model.empty()) want("critic.model", c.critic.model);
  if (!c.eval.data.empty()) want("eval.data", c.eval.data);
  if (!c.rollout.draft_model.empty()) want("rollout.draft_model", c.rollout.draft_model);
  if (!c.optimizer.mapped_in.empty()) want("optimizer.mapped_in", c.optimizer.mapped_in);
  for (size_t i = 0; i < c.eval.sets.size(); ++i) {
    want(fmt::format("eval.sets.{}.data", i), c.eval.sets[i].data);
  }
  if (has_stored_head(c)) want("rollout.draft_head", c.rollout.draft_head);
}

// The first file or directory that the job names and that is not there.
std::optional<std::filesystem::path> missing_file(const RunConfig& c) {
  for (const auto& path : {c.model.path, c.data.train, c.model.int4, c.model.reference,
                           c.model.teacher, c.critic.model, c.eval.data, c.rollout.draft_model,
                           std::filesystem::path(has_stored_head(c) ? c.rollout.draft_head : "")}) {
    if (!path.empty() && !std::filesystem::exists(path)) return path;
  }
  for (const EvalSetSection& set : c.eval.sets) {
    if (!std::filesystem::exists(set.data)) return set.data;
  }
  return std::nullopt;
}

void check_reward(const RunConfig& c, const ConfigSource& source) {
  try {
    (void)reward_spec(c.reward);
  } catch (const Error& error) {
    fail(error.code(), "reward.type ({}): {}", source.where("reward.type"), error.what());
  }
}

// What needs no file to see; the rest is in check_calibrated_files().
void check_guards(const RunConfig& c, const ConfigSource& source) {
  if (c.guards.nonfinite == GuardAction::kWarn) {
    fail(ErrorCode::kInvalidArgument,
         "guards.nonfinite ({}) is warn, but such an update would spoil every weight: set skip, "
         "roll_back or stop",
         source.where("guards.nonfinite"));
  }
  if (c.guards.max_kl > 0.0 && c.algorithm.reference != ReferenceMode::kAlways &&
      !may_need_reference(c.algorithm)) {
    fail(ErrorCode::kInvalidArgument,
         "guards.max_kl ({}) watches the KL to the reference, which algorithm.reference ({}) and "
         "algorithm.kl_metric_every ({}) keep from being measured",
         source.where("guards.max_kl"), source.where("algorithm.reference"),
         source.where("algorithm.kl_metric_every"));
  }
}

void check_qat_start(const RunConfig& c, const ConfigSource& source) {
  if (c.qat.start != QatStart::kCalibrated) {
    if (c.qat.masters != QatSection{}.masters) {
      fail(ErrorCode::kInvalidArgument,
           "qat.masters is nearest ({}), but qat.start is rtn, whose masters are the weights: "
           "remove it, or set qat.start: calibrated",
           source.where("qat.masters"));
    }
    if (c.qat.rescale_every == 0) return;
    fail(ErrorCode::kInvalidArgument,
         "qat.rescale_every is {} ({}), but qat.start is rtn, which derives scales at every step: "
         "remove it, or set qat.start: calibrated",
         c.qat.rescale_every, source.where("qat.rescale_every"));
  }
  const auto refuse = [&](const char* why) {
    fail(ErrorCode::kInvalidArgument, "qat.start is calibrated ({}), {}", source.where("qat.start"),
         why);
  };
  if (!c.qat.enabled) refuse("but qat.enabled is false: nothing would multiply with the codes");
  if (c.model.int4.empty()) {
    refuse("but model.int4 is empty: name the INT4 checkpoint that was calibrated");
  }
  if (c.model.init == ModelInit::kRandom) {
    refuse("but model.init is random: the masters start from the weights that were calibrated");
  }
}

// `plan` is what model.int4's own config.json states, but for the group size.
void check_calibrated_files(const RunConfig& c, const ConfigSource& source,
                            const QuantizationPlan& plan) {
  if (c.qat.start != QatStart::kCalibrated) return;
  const std::filesystem::path path = c.model.path / "config.json";
  if (parse_quantization_config(model_json(c, c.model.path), path.string())) {
    fail(ErrorCode::kInvalidArgument,
         "qat.start is calibrated ({}), but model.path '{}' is quantized: name the BF16 model that "
         "'{}' was made from",
         source.where("qat.start"), c.model.path.string(), c.model.int4.string());
  }
  const auto stored = parse_quantization_config(model_json(c, c.model.int4),
                                                (c.model.int4 / "config.json").string());
  if (stored && stored->group_size != plan.config.group_size) {
    fail(ErrorCode::kInvalidArgument,
         "qat.group_size is {} ({}), but the scales of model.int4 '{}' are of groups of {} and "
         "qat.start: calibrated holds them: remove it (OPEN_TRAINING_INT4_GROUP_SIZE sets it too)",
         plan.config.group_size, source.where("qat.group_size"), c.model.int4.string(),
         stored->group_size);
  }
}

}  // namespace

RunConfig load_run_config(const std::filesystem::path& file, std::span<const std::string> overrides,
                          const Env& env, NamedFiles files) {
  auto loaded = load_config<RunConfig>(file, overrides);
  RunConfig& config = loaded.config;
  if (env.fake_qat_flag) config.qat.enabled = *env.fake_qat_flag;
  if (env.fake_qat_group) config.qat.group_size = *env.fake_qat_group;
  settle_job_kind(config, loaded.source);
  if (!is_supervised(config)) {
    check_batch(config, loaded.source);
    check_algorithm(config, loaded.source);
    check_guards(config, loaded.source);
  }
  check_optimizer(config, loaded.source);
  check_sizes(config, loaded.source);
  check_eval(config, loaded.source);
  check_reward(config, loaded.source);
  check_qat_start(config, loaded.source);
  check_lora(config, loaded.source);
  validate(config.algorithm.loss);
  if (files == NamedFiles::kMayBeMissing && missing_file(config)) {
    get_logger("config")->warn(
        "'{}' does not exist yet; what depends on models and data was not checked",
        missing_file(config)->string());
    return config;
  }
  check_paths(config, loaded.source);
  const JobPlans plans = job_plans(config);
  for (const auto& shared : {config.model.path, config.model.teacher, config.critic.model}) {
    if (shared.empty()) continue;
    const auto problem = mesh_problem(model_of(config, shared), trainer_mesh(config));
    if (!problem) continue;
    fail(ErrorCode::kInvalidArgument, "cluster.trainers ({}) cannot share '{}' so: {}",
         loaded.source.where("cluster.trainers"), shared.string(), *problem);
  }
  if (const auto problem =
          mesh_problem(model_of(config, config.model.path), engine_mesh(config.rollout))) {
    fail(ErrorCode::kInvalidArgument, "rollout.tensor ({}): ranks cannot share '{}' so: {}",
         loaded.source.where("rollout.tensor"), config.model.path.string(), *problem);
  }
  if (config.qat.enabled && !plans.train.any()) {
    fail(ErrorCode::kInvalidArgument,
         "qat.enabled is true, but '{}' has no quantization_config: convert the model with `nibble "
         "convert` and name the result in model.int4, or set qat.enabled: false",
         quantization_source(config).string());
  }
  check_calibrated_files(config, loaded.source, plans.train);
  check_lora_plans(config, loaded.source, plans);
  if (config.algorithm.routing_replay &&
      model_of(config, config.model.path).num_moe_layers() == 0) {
    fail(
        ErrorCode::kInvalidArgument,
        "algorithm.routing_replay ({}): '{}' has no experts whose choice could be replayed; remove "
        "it",
        loaded.source.where("algorithm.routing_replay"), config.model.path.string());
  }
  return config;
}

std::string effective_yaml(const RunConfig& config) { return dump_config(config); }

RunConfig parse_effective_yaml(const std::string& yaml) {
  return parse_config<RunConfig>(yaml, "the coordinator's configuration").config;
}

CoordinatorConfig coordinator_config(const RunConfig& c) {
  return {c.run,        c.cluster,     c.data,    c.eval,
          c.checkpoint, c.weight_sync, c.logging, c.guards.max_rollbacks};
}

SamplingPlan sampling_plan(const RunConfig& c) {
  return {c.rollout.prompts_per_step,
          c.rollout.samples_per_prompt,
          c.rollout.max_new_tokens,
          c.rollout.temperature,
          c.rollout.top_p,
          c.rollout.top_k,
          std::chrono::milliseconds(c.rollout.timeout_ms),
          static_cast<int>(c.rollout.tensor),
          c.rollout.schedule,
          c.rollout.staleness_limit(),
          c.rollout.groups_in_flight(),
          c.rollout.dynamic_filter,
          c.rollout.partial_rollout};
}

SupervisedPlan supervised_plan(const RunConfig& c) {
  return {c.optimizer.global_batch, std::chrono::milliseconds(c.rollout.timeout_ms)};
}

std::optional<RecordSource> record_source(const RunConfig& c) {
  if (!is_supervised(c)) return std::nullopt;
  return RecordSource{c.data.train, c.eval.data, c.data.keys, c.model.path,
                      c.rollout.max_positions};
}

TrainerConfig trainer_config(const RunConfig& c) {
  TrainerConfig config;
  JobPlans plans = job_plans(c);
  config.model = c.model.path;
  config.offload_reference = c.model.offload_reference;
  config.init = c.model.init;
  config.seed = static_cast<uint64_t>(c.run.seed);
  config.reference = c.model.reference.empty() ? c.model.path : c.model.reference;
  config.teacher = c.model.teacher;
  config.lora = c.lora.shape();
  if (config.lora) config.base = frozen_base(c, plans.train);
  config.train_plan = std::move(plans.train);
  config.serve_plan = std::move(plans.serve);
  config.draft = std::move(plans.draft);
  if (c.qat.start == QatStart::kCalibrated) config.calibrated = c.model.int4;
  config.calibrated_place = c.qat.masters;
  config.rescale_every = c.qat.rescale_every;
  config.algorithm = c.algorithm;
  if (is_supervised(c)) config.algorithm.reference = ReferenceMode::kNever;
  config.optimizer = c.optimizer;
  if (const std::filesystem::path model = critic_model(c); !model.empty()) {
    config.critic = c.critic;
    config.critic->model = model;
  }
  config.temperature = c.rollout.temperature;
  config.max_tokens_per_device = c.parallel.max_tokens_per_device;
  config.recompute = c.trainer.recompute;
  config.max_positions = c.rollout.max_positions;
  config.max_new_tokens = c.rollout.max_new_tokens;
  config.guards = c.guards;
  config.exact_rollout =
      (c.run.numerics == Numerics::kExact || c.cluster.device == DeviceChoice::kCpu) &&
      c.rollout.staleness_limit() == 0;
  return config;
}

Mesh trainer_mesh(const RunConfig& c) {
  return {static_cast<int>(c.cluster.trainers), static_cast<int>(c.parallel.tensor),
          static_cast<int>(c.parallel.expert), static_cast<int>(c.parallel.context)};
}

int worker_threads(const RunConfig& config, WorkerRole role) {
  if (config.cluster.threads_per_worker > 0) {
    return static_cast<int>(config.cluster.threads_per_worker);
  }
  const ClusterSection& cluster = config.cluster;
  int64_t sharing = role == WorkerRole::kRollout ? cluster.rollout_workers : cluster.trainers;
  if (config.rollout.schedule != RolloutSchedule::kSync) sharing = cluster.num_workers();
  const auto cores = static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  return static_cast<int>(std::max<int64_t>(1, cores / sharing));
}

}  // namespace nibble
