#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "coordinator/run_config.h"
#include "coordinator/run_loop.h"
#include "coordinator/supervised_loop.h"
#include "core/base/env.h"
#include "core/config/config.h"
#include "core/spec/mesh.h"
#include "rollout/reward_config.h"
#include "rollout/rollout_config.h"
#include "rollout/rollout_service.h"
#include "trainer/config/critic_config.h"
#include "trainer/config/guard_config.h"
#include "trainer/config/lora_config.h"
#include "trainer/config/train_config.h"
#include "trainer/trainer_service.h"

namespace nibble {

/// The whole configuration of a job, one section per component.
struct RunConfig {
  RunSection run;
  ClusterSection cluster;
  ModelSection model;
  QatSection qat;
  LoraSection lora;
  DataSection data;
  RolloutConfig rollout;
  RewardConfig reward;
  AlgorithmConfig algorithm;
  CriticConfig critic;
  OptimizerConfig optimizer;
  ParallelConfig parallel;
  TrainerSection trainer;
  WeightSyncSection weight_sync;
  EvalSection eval;
  CheckpointSection checkpoint;
  GuardsConfig guards;
  LoggingSection logging;
};

template <typename Visitor>
void visit_fields(Visitor& v, RunConfig& c) {
  v.section("run", c.run, "what this run is");
  v.section("cluster", c.cluster, "processes");
  v.section("model", c.model, "where weights come from");
  v.section("qat", c.qat, "fake quantization in the trainer");
  v.section("lora", c.lora, "adapters beside frozen weights");
  v.section("data", c.data, "what is trained on");
  v.section("rollout", c.rollout, "what is sampled, and the engine's sizes");
  v.section("reward", c.reward, "how responses are scored");
  v.section("algorithm", c.algorithm, "advantages, policy loss, KL");
  v.section("critic", c.critic, "the value model of algorithm.advantage: gae");
  v.section("optimizer", c.optimizer, "AdamW");
  v.section("parallel", c.parallel, "how trainers share the work");
  v.section("trainer", c.trainer, "what a trainer keeps in memory");
  v.section("weight_sync", c.weight_sync, "publication of weights");
  v.section("eval", c.eval, "held-out data");
  v.section("checkpoint", c.checkpoint, "what is kept to resume from");
  v.section("guards", c.guards, "updates that are not to be made");
  v.section("logging", c.logging, "logs and texts");
}

/// Whether the models and data that a configuration names must be there.
enum class NamedFiles {
  kRequired,
  kMayBeMissing,  ///< then a warning says that what depends on them was not checked
};

/// Reads a file with overrides, applies the environment's two QAT variables and checks what no
/// single key can tell: batch arithmetic, paths, contradictions. Throws Error{kInvalidArgument}
/// naming file, line and keys.
RunConfig load_run_config(const std::filesystem::path& file, std::span<const std::string> overrides,
                          const Env& env, NamedFiles files = NamedFiles::kRequired);

/// The effective configuration as YAML, as workers get it.
std::string effective_yaml(const RunConfig& config);
/// Reads what effective_yaml() wrote.
RunConfig parse_effective_yaml(const std::string& yaml);

CoordinatorConfig coordinator_config(const RunConfig& config);
SamplingPlan sampling_plan(const RunConfig& config);
SupervisedPlan supervised_plan(const RunConfig& config);
TrainerConfig trainer_config(const RunConfig& config);
/// How the trainer ranks share the model.
Mesh trainer_mesh(const RunConfig& config);
/// Of a supervised job (algorithm.loss: sft); empty for any other.
std::optional<RecordSource> record_source(const RunConfig& config);

/// Threads of one worker: all cores for the roles that take turns, split among workers of a role.
int worker_threads(const RunConfig& config, WorkerRole role);

}  // namespace nibble
