#include "rollout/weight_links.h"

#include <algorithm>
#include <utility>

#include "core/base/fail.h"
#include "core/device/cuda_device.h"
#include "weight_sync/group_transport.h"

namespace nibble {

void WeightLinks::join(Whom whom, const Rendezvous& rendezvous, int rank, int world, int receiver) {
  auto& link = links_[static_cast<size_t>(whom)];
  {
    const std::lock_guard lock(mutex_);
    if (link) link->transport->abort();
    link.reset();
  }
  ops::bind_cuda_thread();
  auto made = std::make_shared<Link>();
  made->group = on_gpu_ ? join_gpu_group(wire_, rendezvous, rank, world)
                        : join_gloo_group(rendezvous, rank, world);
  made->transport = std::make_unique<GroupTransport>(
      *made->group, receiver, on_gpu_ ? DeviceKind::kCuda : DeviceKind::kCpu);
  const std::lock_guard lock(mutex_);
  link = std::move(made);
}

std::shared_ptr<WeightLinks::Link> WeightLinks::at(Whom whom) {
  const std::lock_guard lock(mutex_);
  const auto& link = links_[static_cast<size_t>(whom)];
  if (!link) {
    fail(ErrorCode::kFailedPrecondition, "engine {} has met no {}", engine_,
         whom == Whom::kPeer ? "peer" : "trainers");
  }
  return link;
}

WeightLinks::Sending::Sending(WeightLinks& links, std::shared_ptr<Link> link, int64_t version)
    : links_(links), link_(std::move(link)), version_(version) {
  const std::lock_guard lock(links_.mutex_);
  links_.sendings_.insert(this);
}

WeightLinks::Sending::~Sending() {
  const std::lock_guard lock(links_.mutex_);
  links_.sendings_.erase(this);
  links_.sending_ended_.notify_all();
}

void WeightLinks::end_sendings_before(int64_t version, Deadline deadline) {
  const auto is_earlier = [&](const Sending* sending) { return sending->version_ < version; };
  std::unique_lock lock(mutex_);
  for (const Sending* sending : sendings_) {
    if (is_earlier(sending)) sending->link_->transport->abort();
  }
  sending_ended_.wait_until(lock, deadline.time(), [&] {
    return std::none_of(sendings_.begin(), sendings_.end(), is_earlier);
  });
}

}  // namespace nibble
