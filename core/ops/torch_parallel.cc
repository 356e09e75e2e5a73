#include "core/ops/torch_parallel.h"

#include <ATen/Parallel.h>

#include "core/base/fail.h"

namespace nibble::ops {

void TorchParallel::run(int64_t count, int64_t grain, kernels::RangeBody body) const {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end); });
}

const TorchParallel& torch_parallel() {
  static const TorchParallel instance;
  return instance;
}

void set_num_threads(int threads) {
  NIBBLE_CHECK(threads >= 1, "{} threads", threads);
  at::set_num_threads(threads);
}

int num_threads() { return at::get_num_threads(); }

}  // namespace nibble::ops
