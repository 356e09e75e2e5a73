#pragma once

#include <filesystem>

#include "cli/run_config.h"

namespace nibble {

/// Whether a job learns given tokens (algorithm.loss: sft) instead of rollouts.
bool is_supervised(const RunConfig& config);

/// Where the job's critic starts from; empty without algorithm.advantage: gae.
std::filesystem::path critic_model(const RunConfig& config);

/// Refuses what does not go with the kind of job: values that a supervised job would not look at,
/// what only a supervised one has in any other, and counts of workers that contradict
/// cluster.placement. Compares with the defaults, so that an
/// effective configuration is accepted again. Where the file says nothing it sets what has one
/// value only: algorithm.aggregation of a supervised job to token-mean, cluster.rollout_workers of
/// a colocated one to cluster.trainers. Throws Error{kInvalidArgument}
/// naming key and line.
void settle_job_kind(RunConfig& config, const ConfigSource& source);

}  // namespace nibble
