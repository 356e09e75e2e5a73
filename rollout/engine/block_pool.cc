#include "rollout/engine/block_pool.h"

#include "core/base/fail.h"

namespace nibble {

BlockPool::BlockPool(int64_t num_blocks) : num_blocks_(num_blocks) {
  free_.reserve(static_cast<size_t>(num_blocks));
  for (int64_t block = num_blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<int32_t>(block));
  }
}

int32_t BlockPool::take() {
  NIBBLE_CHECK(!free_.empty(), "none of {} blocks is free", num_blocks_);
  const int32_t block = free_.back();
  free_.pop_back();
  return block;
}

}  // namespace nibble
