#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

/// Hands out the token slots of a KV cache. All or nothing, allocation-free after construction.
class SlotAllocator {
 public:
  explicit SlotAllocator(int64_t num_slots);
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_slots() const { return num_slots_; }
  /// Fills `slots`; the caller has seen that so many are free.
  void take(std::span<int32_t> slots);
  void release(std::span<const int32_t> slots);

 private:
  int64_t num_slots_;
  std::vector<int32_t> free_;  // a stack; ascending runs come back as they went
};

}  // namespace nibble
