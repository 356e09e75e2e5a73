#include "cli/rollout_checks.h"

#include "core/base/fail.h"

namespace nibble {
namespace {

void check_drafts(const RolloutConfig& rollout, const ConfigSource& source) {
  if (!rollout.draft_model.empty() && rollout.max_draft_tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.draft_model ({}) guesses nothing while rollout.max_draft_tokens is 0: set it, "
         "such "
         "as to 4, or remove the draft model",
         source.where("rollout.draft_model"));
  }
  if (!rollout.draft_adapts && rollout.max_draft_tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.draft_adapts ({}) means nothing while rollout.max_draft_tokens is 0: remove it",
         source.where("rollout.draft_adapts"));
  }
  if (rollout.draft_head.empty()) {
    if (!rollout.train_draft_head) return;
    fail(ErrorCode::kInvalidArgument,
         "rollout.train_draft_head ({}) trains nothing without rollout.draft_head: set it, such as "
         "to random",
         source.where("rollout.train_draft_head"));
  }
  if (rollout.max_draft_tokens == 0) {
    fail(
        ErrorCode::kInvalidArgument,
        "rollout.draft_head ({}) guesses nothing while rollout.max_draft_tokens is 0: set it, such "
        "as to 3, or remove the head",
        source.where("rollout.draft_head"));
  }
  if (rollout.draft_model.empty()) return;
  fail(ErrorCode::kInvalidArgument,
       "rollout.draft_head ({}) and rollout.draft_model do not guess together: remove one",
       source.where("rollout.draft_head"));
}

void check_engine_ranks(const RunConfig& c, const ConfigSource& source) {
  const RolloutConfig& rollout = c.rollout;
  if (rollout.expert != 1 && rollout.expert != rollout.tensor) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.expert is {} ({}); it must be 1 or rollout.tensor = {}", rollout.expert,
         source.where("rollout.expert"), rollout.tensor);
  }
  if (c.cluster.rollout_workers % rollout.tensor != 0) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.tensor = {} ({}) does not divide cluster.rollout_workers = {} ({}), which counts "
         "all ranks of all engines: raise rollout_workers to {}",
         rollout.tensor, source.where("rollout.tensor"), c.cluster.rollout_workers,
         source.where("cluster.rollout_workers"),
         (c.cluster.rollout_workers / rollout.tensor + 1) * rollout.tensor);
  }
  if (rollout.tensor > 1 && c.cluster.external_engines > 0) {
    fail(ErrorCode::kUnimplemented,
         "cluster.external_engines ({}): others cannot read weights from engines of several ranks; "
         "set rollout.tensor: 1 ({}), or cluster.external_engines: 0",
         source.where("cluster.external_engines"), source.where("rollout.tensor"));
  }
}

// Whether the samples of a step may be of older weights, and what follows from it.
void check_schedule(const RunConfig& c, const ConfigSource& source) {
  const RolloutConfig& rollout = c.rollout;
  const bool is_sync = rollout.schedule == RolloutSchedule::kSync;
  const bool is_async = rollout.schedule == RolloutSchedule::kAsync;
  const auto refuse = [&](const char* key, const std::string& why) {
    fail(ErrorCode::kInvalidArgument, "rollout.{} ({}) {}", key,
         source.where(std::string("rollout.") + key), why);
  };
  if (!is_sync && c.cluster.placement == Placement::kColocated) {
    refuse("schedule", fmt::format("draws samples beside the training, and with cluster.placement: "
                                   "colocated ({}) both share a device: set sync, or separate",
                                   source.where("cluster.placement")));
  }
  if (rollout.oversample != 0 && rollout.oversample < rollout.prompts_per_step) {
    refuse("oversample",
           fmt::format("is less than rollout.prompts_per_step = {} ({}), which a step "
                       "needs: set 0, or more",
                       rollout.prompts_per_step, source.where("rollout.prompts_per_step")));
  }
  const int64_t most = (rollout.staleness_limit() + 1) * rollout.prompts_per_step;
  if (rollout.oversample > most && (is_async || rollout.partial_rollout)) {
    refuse("oversample",
           fmt::format("is {}, but of what is under way at a time only {} groups can be trained on "
                       "within {} steps (rollout.max_staleness, {}): lower it, or raise that",
                       rollout.oversample, most, rollout.staleness_limit(),
                       source.where("rollout.max_staleness")));
  }
  if (rollout.partial_rollout && !is_sync) {
    refuse("partial_rollout",
           fmt::format("is of rollout.schedule: sync ({}): async goes on anyway, "
                       "and one_step_off waits for whole groups",
                       source.where("rollout.schedule")));
  }
  if (rollout.partial_rollout && rollout.oversample <= rollout.prompts_per_step) {
    refuse("partial_rollout",
           fmt::format("carries nothing on while rollout.oversample ({}) is not "
                       "above rollout.prompts_per_step = {}",
                       source.where("rollout.oversample"), rollout.prompts_per_step));
  }
  const bool goes_on = is_async || rollout.partial_rollout;
  if (goes_on && rollout.kv_policy == KvPolicy::kAbort) {
    refuse("kv_policy",
           "abort ends the samples that a swap of weights meets, and here it meets "
           "some at every step: set keep or recompute");
  }
  const int64_t staleness = rollout.staleness_limit();
  const bool needs_staleness = !is_sync || rollout.partial_rollout;
  if (needs_staleness != (staleness > 0)) {
    refuse("max_staleness",
           needs_staleness ? "is 0, with which this schedule would drop what it drew: set 1 or "
                             "more"
                           : "does nothing: with rollout.schedule: sync and without "
                             "rollout.partial_rollout samples are of the newest weights");
  }
  const AlgorithmConfig& algorithm = c.algorithm;
  if (staleness > 0 && algorithm.loss.correction.kind == OffPolicyCorrection::kNone &&
      !algorithm.use_rollout_logprobs) {
    refuse(is_sync ? "partial_rollout" : "schedule",
           fmt::format("trains on samples of older weights, which algorithm.correction: none ({}) "
                       "would not correct: set tis, icepop or mis, or "
                       "algorithm.use_rollout_logprobs",
                       source.where("algorithm.correction")));
  }
  if (rollout.dynamic_filter == DynamicFilter::kNonzeroStd && rollout.samples_per_prompt < 2) {
    refuse("dynamic_filter", fmt::format("compares the samples of a prompt, and "
                                         "rollout.samples_per_prompt is 1 ({})",
                                         source.where("rollout.samples_per_prompt")));
  }
}

}  // namespace

void check_rollout(const RunConfig& config, const ConfigSource& source) {
  check_drafts(config.rollout, source);
  check_engine_ranks(config, source);
  check_schedule(config, source);
}

bool has_stored_head(const RunConfig& c) {
  return !c.rollout.draft_head.empty() && c.rollout.draft_head != "random";
}

}  // namespace nibble
