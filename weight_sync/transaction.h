#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/quant/hash.h"
#include "weight_sync/digest.h"
#include "weight_sync/layout.h"

namespace nibble {

/// Names one attempt to publish one version to one receiver; every message carries it.
struct Transaction {
  std::string job;
  int64_t epoch = 0;    ///< of the membership, > 0; never goes back
  int64_t version = 0;  ///< count of publications, > 0; never goes back
  Digest plan_digest;
  int64_t base_version = 0;  ///< not 0: what changed since this version travels (delta.h)
  /// The receiver has the tensors that are the same in every version: they do not travel.
  bool omits_frozen = false;
  friend bool operator==(const Transaction&, const Transaction&) = default;
};

/// Content hash of one slice, its elements at their absolute positions in the whole tensor.
struct SliceHash {
  Slice slice;
  quant::ContentHash hash;
};

/// What a sender says it sent to one receiver, over the control channel.
struct SenderReport {
  int sender = 0;
  Transaction transaction;
  std::vector<SliceHash> slices;  ///< in the order of the plan's edge
  int64_t bytes = 0;              ///< that this sender sent
};

}  // namespace nibble
