#pragma once

#include <memory>

#include "core/base/clock.h"
#include "core/models/weights.h"

namespace nibble {

/// The weight buffers of a rollout worker: two, one is served and one is filled; or one, for
/// weights that are replaced in place. A buffer comes back when its last holder lets go, and is
/// reused. Frozen parameters have no memory in it. Any thread may call any method; buffers may
/// outlive the pool.
class ShadowPool {
 public:
  /// `table` is kept as long as a buffer lives.
  ShadowPool(std::shared_ptr<const ParameterTable> table, const QuantizationPlan& plan,
             DeviceKind device, int max_buffers);
  /// A buffer with undefined contents, or with the last ones of the only buffer; allocated on first
  /// need. Waits while all are held. Throws Error{kResourceExhausted} if they are at the deadline.
  std::shared_ptr<ResidentWeights> acquire(Deadline deadline);
  /// The same without waiting.
  std::shared_ptr<ResidentWeights> acquire();
  int num_allocated() const;

 private:
  struct Shelf;
  std::shared_ptr<Shelf> shelf_;  // shared: buffers find their way back after the pool is gone
};

}  // namespace nibble
