#include "weight_sync/packed_store.h"

#include "core/base/fail.h"

namespace nibble {

void PackedStore::put(int64_t version, SharedPacking parameters) {
  SharedPacking before;  // let go of after the lock: we may be its last holder
  const std::lock_guard lock(mutex_);
  before = std::move(parameters_);
  version_ = version;
  parameters_ = std::move(parameters);
  changed_.notify_all();
}

HeldPacking PackedStore::take(int64_t version, Deadline deadline) {
  std::unique_lock lock(mutex_);
  const bool in_time =
      changed_.wait_until(lock, deadline.time(), [&] { return version_ >= version; });
  if (!in_time) {
    fail(ErrorCode::kDeadlineExceeded,
         "trainer rank {} of this process has not packed version {} in time", rank_, version);
  }
  if (version_ != version || parameters_ == nullptr) {
    fail(ErrorCode::kFailedPrecondition,
         "version {} of trainer rank {} of this process is gone: {}", version, rank_,
         version_ != version ? fmt::format("version {} took its place", version_)
                             : std::string("it was taken before"));
  }
  return {rank_, mesh_, std::move(parameters_)};
}

}  // namespace nibble
