#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/ops/tape_ops.h"

namespace nibble {

/// A prompt and the responses sampled from it; the prompt is computed once for all of them.
struct SequenceGroup {
  std::vector<int32_t> prompt;                  ///< at least one token
  std::vector<std::vector<int32_t>> responses;  ///< empty list: only the prompt, all its tokens
};

/// Groups laid out without padding: every prompt once, then its responses, group after group.
struct PackedBatch {
  std::vector<int32_t> tokens;      ///< [T]
  ops::SharedIndex index;           ///< [T]
  std::vector<int64_t> target_row;  ///< [N]: row whose hidden state predicts target i
  std::vector<int32_t> target;      ///< [N]: response tokens, group by group, response by response
};

/// Lays out groups. A response's tokens see the prompt and their own predecessors only.
PackedBatch pack_groups(std::span<const SequenceGroup> groups);

/// One plain sequence whose targets are its tokens 1..n-1.
PackedBatch pack_sequence(std::span<const int32_t> ids);

}  // namespace nibble
