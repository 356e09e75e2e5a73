#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

/// Numbers of the free blocks of a KV cache; a block is a fixed number of token slots.
/// Allocation-free after construction. One thread.
class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);
  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  /// The caller has seen that one is free.
  int32_t take();
  void release(int32_t block) { free_.push_back(block); }

 private:
  int64_t num_blocks_;
  std::vector<int32_t> free_;  // a stack
};

}  // namespace nibble
