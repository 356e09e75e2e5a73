#pragma once

#include <memory>

#include "core/models/weights.h"

namespace nibble {

/// The two weight buffers of a rollout worker: one is served, one is filled. A buffer comes back
/// when its last holder lets go, and is reused. Any thread may call any method; buffers may outlive
/// the pool.
class ShadowPool {
 public:
  static constexpr int kMaxBuffers = 2;

  /// `table` must outlive the pool and its buffers.
  ShadowPool(const ParameterTable& table, const QuantizationPlan& plan, DeviceKind device);
  /// A buffer with undefined contents; allocated on first need. Throws Error{kResourceExhausted}
  /// while both are held.
  std::shared_ptr<ResidentWeights> acquire();
  int num_allocated() const;

 private:
  struct Shelf;
  std::shared_ptr<Shelf> shelf_;  // shared: buffers find their way back after the pool is gone
};

}  // namespace nibble
