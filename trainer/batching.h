#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/data/sample.h"
#include "core/models/packing.h"

namespace nibble {

/// A sample group with what the loss needs of it.
struct ScoredGroup {
  const SampleGroup* group = nullptr;  ///< borrowed
  std::vector<double> advantages;      ///< one per sample
  std::vector<uint8_t> is_masked;      ///< one per sample: 1 = not in the loss; empty: none
};

/// Which sample it is, in the whole run.
struct SampleName {
  uint64_t prompt_id = 0;
  uint32_t sample_index = 0;
};

/// Tokens that are computed together, packed without padding, every prompt once.
struct MicroBatch {
  PackedBatch packed;
  std::vector<float> rollout_log_prob;  ///< [N] like packed.target
  std::vector<float> advantage;         ///< [N]
  std::vector<uint8_t> mask;            ///< [N] 1 = counts
  std::vector<int64_t> sample_begin;    ///< [samples + 1] into the targets
  std::vector<SampleName> samples;      ///< [samples]; idle_micro_batch(): none
  RouteShape route_shape;               ///< of what follows
  std::vector<uint8_t> routes;          ///< of the packed tokens, in their order; empty: none
  bool is_idle = false;                 ///< idle_micro_batch()
};

/// Cuts groups, in order, into micro-batches of at most `max_tokens` computed tokens. A group that
/// is larger alone is cut by samples (its prompt is then computed again); a single larger sample
/// gets a micro-batch to itself.
std::vector<MicroBatch> make_micro_batches(std::span<const ScoredGroup> groups, int64_t max_tokens);

/// A micro-batch that changes nothing: for a rank that has fewer than the others, because every
/// rank must take part in the gathers.
MicroBatch idle_micro_batch();

/// Shares groups among ranks by their computed tokens: largest first to the least loaded rank, ties
/// to the lower number. Returns, for each rank, group numbers in ascending order. Deterministic.
std::vector<std::vector<int64_t>> balance_groups(std::span<const int64_t> tokens, int world);

/// Tokens that training computes for a group.
int64_t group_tokens(const SampleGroup& group);

}  // namespace nibble
