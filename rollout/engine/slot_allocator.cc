#include "rollout/engine/slot_allocator.h"

#include "core/base/fail.h"

namespace nibble {

SlotAllocator::SlotAllocator(int64_t num_slots) : num_slots_(num_slots) {
  free_.resize(static_cast<size_t>(num_slots));
  for (int64_t i = 0; i < num_slots; ++i) {
    free_[static_cast<size_t>(i)] = static_cast<int32_t>(num_slots - 1 - i);
  }
}

void SlotAllocator::take(std::span<int32_t> slots) {
  NIBBLE_CHECK(slots.size() <= free_.size(), "{} slots wanted, {} free", slots.size(),
               free_.size());
  for (int32_t& slot : slots) {
    slot = free_.back();
    free_.pop_back();
  }
}

void SlotAllocator::release(std::span<const int32_t> slots) {
  NIBBLE_CHECK(static_cast<int64_t>(free_.size() + slots.size()) <= num_slots_,
               "{} slots given back, {} of {} were free", slots.size(), free_.size(), num_slots_);
  free_.insert(free_.end(), slots.rbegin(), slots.rend());
}

}  // namespace nibble
