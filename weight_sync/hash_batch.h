#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "core/quant/hash.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/manifest.h"
#include "weight_sync/plan.h"

namespace nibble {

/// Hashes stored bytes while they are moved, many pieces a call: on a GPU each call costs a launch
/// and a wait, and a model has hundreds of small tensors.
class HashBatch {
 public:
  /// Hashes when `flush_bytes` have gathered. `kernels` is borrowed.
  HashBatch(const kernels::WeightKernels& kernels, int64_t flush_bytes)
      : kernels_(kernels), flush_bytes_(flush_bytes) {}
  /// Adds the hash of `bytes`, which begin at element `first_element` of `tensor`, to *sum: now or
  /// at a later add(), at the latest in flush(). Both must stay until then.
  void add(const StoredTensor& tensor, int64_t first_element, std::span<const std::byte> bytes,
           quant::ContentHash* sum);
  /// The same of a segment of a piece that is moved: `piece` holds the bytes of `planned`.
  void add(const Manifest& manifest, const PlannedSlice& planned, const Segment& segment,
           std::span<const std::byte> piece, quant::ContentHash* sum);
  void flush();
  /// Whether every hash that was added is in its sum.
  bool empty() const { return jobs_.empty(); }

 private:
  const kernels::WeightKernels& kernels_;
  const int64_t flush_bytes_;
  int64_t gathered_bytes_ = 0;
  std::vector<kernels::HashJob> jobs_;
  std::vector<quant::ContentHash*> sums_;  // one per job
};

}  // namespace nibble
