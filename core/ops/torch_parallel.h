#pragma once

#include "core/kernels/parallel.h"

namespace nibble::ops {

/// Runs kernels on torch's intra-op threads, so that a process has one CPU thread pool.
class TorchParallel final : public kernels::Parallel {
 public:
  void run(int64_t count, int64_t grain, kernels::RangeBody body) const override;
};

/// The one instance; it holds no state.
const TorchParallel& torch_parallel();

/// Sets torch's intra-op thread count for this process, at least 1.
void set_num_threads(int threads);
int num_threads();

}  // namespace nibble::ops
