#include "rollout/kept_samples.h"

#include <utility>

#include "core/base/fail.h"

namespace nibble {

void KeptSamples::keep(SampleGroup group) {
  auto kept = std::make_shared<const SampleGroup>(std::move(group));
  const std::lock_guard lock(mutex_);
  groups_[kept->prompt_id] = std::move(kept);
}

std::vector<KeptGroup> KeptSamples::fetch(std::span<const uint64_t> prompt_ids) const {
  const std::lock_guard lock(mutex_);
  std::vector<KeptGroup> found;
  for (const uint64_t id : prompt_ids) {
    const auto group = groups_.find(id);
    if (group == groups_.end()) {
      fail(ErrorCode::kNotFound, "no samples of prompt {} are kept here", id);
    }
    found.push_back(group->second);
  }
  return found;
}

void KeptSamples::release(std::span<const uint64_t> prompt_ids) {
  const std::lock_guard lock(mutex_);
  for (const uint64_t id : prompt_ids) groups_.erase(id);
}

}  // namespace nibble
