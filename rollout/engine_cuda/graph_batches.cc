#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {

std::vector<int64_t> default_graph_batches(int64_t most) {
  std::vector<int64_t> batches;
  for (int64_t batch = 1; batch <= most; batch += batch < 8 ? batch : 8) batches.push_back(batch);
  if (most > 0 && batches.back() != most) batches.push_back(most);  // a full batch has one too
  return batches;
}

}  // namespace nibble
