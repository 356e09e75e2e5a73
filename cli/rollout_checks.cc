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

}  // namespace

void check_rollout(const RunConfig& config, const ConfigSource& source) {
  check_drafts(config.rollout, source);
  check_engine_ranks(config, source);
}

bool has_stored_head(const RunConfig& c) {
  return !c.rollout.draft_head.empty() && c.rollout.draft_head != "random";
}

}  // namespace nibble
