#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/data/sample.h"

namespace nibble {

/// Shared: a trainer may still be fetching it when it is released.
using KeptGroup = std::shared_ptr<const SampleGroup>;

/// Scored groups of training, until the coordinator releases them. Any thread.
class KeptSamples {
 public:
  /// A group that is kept already gives way.
  void keep(SampleGroup group);
  /// In the order asked for. Throws Error{kNotFound} naming the prompt.
  std::vector<KeptGroup> fetch(std::span<const uint64_t> prompt_ids) const;
  /// Those that are not kept are passed over.
  void release(std::span<const uint64_t> prompt_ids);

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, KeptGroup> groups_;  // guarded by mutex_; by prompt id
};

}  // namespace nibble
