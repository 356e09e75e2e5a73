#pragma once

#include <cstdint>

#include "trainer/parallel/gathered_weights.h"

namespace nibble {

/// Bytes of the arrays that GatheredWeights keeps from pass to pass: two layers and what is in
/// none, each with what is sent, what came, what it became and, with gradients, theirs; and the
/// gradients on their way. What a rank owns whole needs none of it, unless it is on the host: then
/// it needs the copy.
int64_t ring_bytes(const ShardLayout& layout, bool with_gradients, ShardHome home);

/// Bytes that a rank receives in the passes of one version of the weights.
struct GatherPlan {
  GatherBytes first;    ///< of the first micro-batch
  GatherBytes further;  ///< of each after it, which finds some of the ring filled
  GatherBytes of(int64_t micro_batches) const {
    return {first.quantized + (micro_batches - 1) * further.quantized,
            first.plain + (micro_batches - 1) * further.plain};
  }
};
/// Of micro-batches that are trained on, or of passes without gradients.
GatherPlan plan_gathers(const ShardLayout& layout, bool with_gradients);

/// Bytes that a rank receives in one step of a model that is asked first for what it says under its
/// old weights (old log-probabilities, a critic's values): passes without gradients over all
/// updates' micro-batches, then each update's with gradients, the first one's under the same
/// weights.
///   micro_batches  of one update
GatherBytes plan_gathers_with_old_pass(const ShardLayout& layout, int64_t updates,
                                       int64_t micro_batches);

}  // namespace nibble
