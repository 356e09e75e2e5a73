#include "cli/job_kind.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "core/base/fail.h"

namespace nibble {
namespace {

// What a supervised job does not look at; a name that ends with a dot is a whole section.
constexpr std::array<std::string_view, 20> kRolloutOnly = {"rollout.",
                                                           "guards.",
                                                           "reward.",
                                                           "cluster.external_engines",
                                                           "algorithm.",
                                                           "critic.",
                                                           "model.reference",
                                                           "model.teacher",
                                                           "model.offload_reference",
                                                           "data.label_key",
                                                           "optimizer.steps_per_rollout",
                                                           "eval.samples",
                                                           "eval.sets",
                                                           "eval.temperature",
                                                           "logging.sample_text_steps",
                                                           "weight_sync.retries",
                                                           "weight_sync.delta",
                                                           "weight_sync.whole_every",
                                                           "weight_sync.min_mb_per_s",
                                                           "weight_sync.in_place"};
constexpr std::array<std::string_view, 4> kRolloutOnlyBut = {
    "rollout.max_positions", "rollout.timeout_ms", "algorithm.loss", "algorithm.aggregation"};
constexpr std::array<std::string_view, 3> kSupervisedOnly = {"data.response_key", "data.text_key",
                                                             "model.init"};

template <size_t N>
bool names(const std::array<std::string_view, N>& list, std::string_view key) {
  return std::any_of(list.begin(), list.end(), [&](std::string_view entry) {
    return entry == key || (entry.ends_with('.') && key.starts_with(entry));
  });
}

// Colocated workers are trainer and engine, so there are as many of the ones as of the others.
void settle_placement(RunConfig& config, const ConfigSource& source) {
  ClusterSection& cluster = config.cluster;
  if (cluster.placement == Placement::kSeparate) return;
  if (is_supervised(config)) {
    fail(ErrorCode::kInvalidArgument,
         "cluster.placement is colocated ({}); algorithm.loss: sft has no rollout engine to place: "
         "remove it",
         source.where("cluster.placement"));
  }
  if (!source.is_set("cluster.rollout_workers")) cluster.rollout_workers = cluster.trainers;
  if (cluster.rollout_workers == cluster.trainers) return;
  fail(ErrorCode::kInvalidArgument,
       "cluster.rollout_workers is {} ({}) and cluster.trainers {} ({}); with cluster.placement: "
       "colocated every worker is both: make them equal, or leave rollout_workers out",
       cluster.rollout_workers, source.where("cluster.rollout_workers"), cluster.trainers,
       source.where("cluster.trainers"));
}

void settle_supervised(RunConfig& config, const ConfigSource& source) {
  for (const std::string& key : changed_keys(config)) {
    if (!names(kRolloutOnly, key) || names(kRolloutOnlyBut, key)) continue;
    fail(ErrorCode::kInvalidArgument,
         "{} ({}) means nothing with algorithm.loss: sft, which samples and scores nothing: remove "
         "it",
         key, source.where(key));
  }
  if (config.cluster.rollout_workers != 0) {
    fail(ErrorCode::kInvalidArgument,
         "cluster.rollout_workers is {} ({}); algorithm.loss: sft samples nothing: set it to 0",
         config.cluster.rollout_workers, source.where("cluster.rollout_workers"));
  }
  Aggregation& aggregation = config.algorithm.loss.aggregation;
  if (!source.is_set("algorithm.aggregation")) aggregation = Aggregation::kTokenMean;
  if (aggregation != Aggregation::kTokenMean) {
    fail(ErrorCode::kInvalidArgument,
         "algorithm.aggregation ({}): algorithm.loss: sft is the mean over tokens; set token-mean "
         "or remove it",
         source.where("algorithm.aggregation"));
  }
}

}  // namespace

bool is_supervised(const RunConfig& config) {
  return config.algorithm.loss.objective == PolicyObjective::kSft;
}

std::filesystem::path critic_model(const RunConfig& config) {
  const bool has_critic =
      !is_supervised(config) && config.algorithm.advantage.type == AdvantageType::kGae;
  if (!has_critic) return {};
  return config.critic.model.empty() ? config.model.path : config.critic.model;
}

void settle_job_kind(RunConfig& config, const ConfigSource& source) {
  settle_placement(config, source);
  if (is_supervised(config)) return settle_supervised(config, source);
  for (const std::string& key : changed_keys(config)) {
    if (!names(kSupervisedOnly, key)) continue;
    fail(ErrorCode::kInvalidArgument, "{} ({}) goes with algorithm.loss: sft only", key,
         source.where(key));
  }
  if (config.cluster.rollout_workers == 0) {
    fail(ErrorCode::kInvalidArgument,
         "cluster.rollout_workers is 0 ({}); only algorithm.loss: sft needs none: set it to 1 or "
         "more",
         source.where("cluster.rollout_workers"));
  }
}

}  // namespace nibble
