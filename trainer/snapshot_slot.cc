#include "trainer/snapshot_slot.h"

#include "core/base/fail.h"

namespace nibble {

void SnapshotSlot::take(const std::filesystem::path& directory, int64_t step,
                        const std::function<std::unique_ptr<const CheckpointSnapshot>()>& make) {
  {
    const std::lock_guard lock(mutex_);
    if (held_) {
      fail(ErrorCode::kFailedPrecondition,
           "trainer {} cannot copy its state of step {}: the copy of step {} is not finished",
           rank_, step, held_->snapshot->step());
    }
  }
  auto taken = std::make_shared<const Held>(Held{directory, make()});
  if (rank_ == 0) taken->snapshot->begin(directory);
  const std::lock_guard lock(mutex_);
  held_ = std::move(taken);
}

std::shared_ptr<const SnapshotSlot::Held> SnapshotSlot::held(int64_t step) const {
  const std::lock_guard lock(mutex_);
  if (!held_ || held_->snapshot->step() != step) {
    fail(ErrorCode::kFailedPrecondition, "trainer {} has no copy of its state of step {}", rank_,
         step);
  }
  return held_;
}

void SnapshotSlot::write(int64_t step) {
  const auto now = held(step);
  now->snapshot->write_rows(now->directory);
}

void SnapshotSlot::finish(int64_t step, bool publish) {
  const auto now = held(step);
  if (rank_ == 0) {
    if (publish) {
      now->snapshot->publish(now->directory);
    } else {
      CheckpointSnapshot::discard(now->directory);
    }
  }
  clear();
}

void SnapshotSlot::clear() {
  const std::lock_guard lock(mutex_);
  held_.reset();
}

}  // namespace nibble
