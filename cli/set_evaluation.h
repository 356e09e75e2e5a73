#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/eval_sets.h"
#include "cli/eval_stats.h"
#include "cli/model_flags.h"
#include "cli/text_codec.h"

namespace nibble {

/// How a model did on one data set.
struct SetResult {
  EvalStats stats;
  std::vector<std::vector<std::optional<double>>> rewards;  ///< [prompt][sample]; none: not scored
  std::string first_error;                                  ///< of what could not be scored
  int64_t generated_tokens = 0;
};

/// Samples and scores a data set. The marks depend on the model and the set alone, not on what was
/// evaluated before. Throws Error{kInvalidArgument} naming a prompt that does not fit.
SetResult evaluate_set(const EvalSet& set, const LoadedModel& model, const TextCodec& codec);

}  // namespace nibble
