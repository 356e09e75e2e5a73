#include "weight_sync/shadow_pool.h"

#include <condition_variable>
#include <mutex>
#include <vector>

#include "core/base/fail.h"

namespace nibble {

struct ShadowPool::Shelf {
  Shelf(std::shared_ptr<const ParameterTable> t, const QuantizationPlan& p, DeviceKind d, int m)
      : table(std::move(t)), plan(p), device(d), max_buffers(m) {}
  const std::shared_ptr<const ParameterTable> table;
  const QuantizationPlan plan;
  const DeviceKind device;
  const int max_buffers;
  std::mutex mutex;
  std::condition_variable came_back;
  std::vector<std::unique_ptr<ResidentWeights>> free;  // guarded by mutex
  int num_allocated = 0;                               // guarded by mutex
};

ShadowPool::ShadowPool(std::shared_ptr<const ParameterTable> table, const QuantizationPlan& plan,
                       DeviceKind device, int max_buffers)
    : shelf_(std::make_shared<Shelf>(std::move(table), plan, device, max_buffers)) {
  // Giving a buffer back must not allocate.
  shelf_->free.reserve(static_cast<size_t>(max_buffers));
}

std::shared_ptr<ResidentWeights> ShadowPool::acquire() {
  return acquire(Deadline::after(std::chrono::milliseconds(0)));
}

std::shared_ptr<ResidentWeights> ShadowPool::acquire(Deadline deadline) {
  std::unique_ptr<ResidentWeights> buffer;
  {
    std::unique_lock lock(shelf_->mutex);
    const bool in_time = shelf_->came_back.wait_until(lock, deadline.time(), [&] {
      return !shelf_->free.empty() || shelf_->num_allocated < shelf_->max_buffers;
    });
    if (!in_time) {
      fail(ErrorCode::kResourceExhausted,
           "{} held: the engine has not let go of an older version yet; try again after its next "
           "step",
           shelf_->max_buffers == 1 ? "the weight buffer is" : "both weight buffers are");
    }
    if (!shelf_->free.empty()) {
      buffer = std::move(shelf_->free.back());
      shelf_->free.pop_back();
    } else {
      buffer = std::make_unique<ResidentWeights>(*shelf_->table, shelf_->plan, shelf_->device,
                                                 ResidentWeights::Holding::kTrained);
      ++shelf_->num_allocated;
    }
  }
  return {buffer.release(), [shelf = shelf_](ResidentWeights* weights) {
            const std::lock_guard lock(shelf->mutex);
            shelf->free.emplace_back(weights);
            shelf->came_back.notify_all();
          }};
}

int ShadowPool::num_allocated() const {
  const std::lock_guard lock(shelf_->mutex);
  return shelf_->num_allocated;
}

}  // namespace nibble
