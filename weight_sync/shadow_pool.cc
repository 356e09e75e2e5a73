#include "weight_sync/shadow_pool.h"

#include <mutex>
#include <vector>

#include "core/base/fail.h"

namespace nibble {

struct ShadowPool::Shelf {
  Shelf(const ParameterTable& t, const QuantizationPlan& p, DeviceKind d)
      : table(t), plan(p), device(d) {}
  const ParameterTable& table;
  const QuantizationPlan plan;
  const DeviceKind device;
  std::mutex mutex;
  std::vector<std::unique_ptr<ResidentWeights>> free;  // guarded by mutex
  int num_allocated = 0;                               // guarded by mutex
};

ShadowPool::ShadowPool(const ParameterTable& table, const QuantizationPlan& plan, DeviceKind device)
    : shelf_(std::make_shared<Shelf>(table, plan, device)) {
  shelf_->free.reserve(kMaxBuffers);  // giving a buffer back must not allocate
}

std::shared_ptr<ResidentWeights> ShadowPool::acquire() {
  std::unique_ptr<ResidentWeights> buffer;
  {
    const std::lock_guard lock(shelf_->mutex);
    if (!shelf_->free.empty()) {
      buffer = std::move(shelf_->free.back());
      shelf_->free.pop_back();
    } else if (shelf_->num_allocated == kMaxBuffers) {
      fail(ErrorCode::kResourceExhausted,
           "both weight buffers are held: the engine has not let go of an older version yet; try "
           "again after its next step");
    } else {
      buffer = std::make_unique<ResidentWeights>(shelf_->table, shelf_->plan, shelf_->device);
      ++shelf_->num_allocated;
    }
  }
  return {buffer.release(), [shelf = shelf_](ResidentWeights* weights) {
            const std::lock_guard lock(shelf->mutex);
            shelf->free.emplace_back(weights);
          }};
}

int ShadowPool::num_allocated() const {
  const std::lock_guard lock(shelf_->mutex);
  return shelf_->num_allocated;
}

}  // namespace nibble
