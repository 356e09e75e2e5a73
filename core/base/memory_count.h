#pragma once

#include <atomic>
#include <cstdint>

#include "core/base/device_memory.h"

namespace nibble {

/// Bytes that are allocated now, and the most that ever were: of arrays, on the CPU also of tensors
/// (count_tensor_memory). For measurements and plans. Any thread.
class MemoryCount {
 public:
  void add(int64_t bytes) {
    const int64_t now = bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    int64_t peak = peak_.load(std::memory_order_relaxed);
    while (now > peak && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
    }
  }
  void subtract(int64_t bytes) { bytes_.fetch_sub(bytes, std::memory_order_relaxed); }
  int64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  int64_t peak_bytes() const { return peak_.load(std::memory_order_relaxed); }
  /// The peak begins anew with what is allocated now.
  void restart_peak() { peak_.store(bytes(), std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> bytes_{0};
  std::atomic<int64_t> peak_{0};
};

/// Of this process. A GPU's is its allocator's own (ops::peak_cuda_bytes), which knows tensors too.
MemoryCount& memory_count(DeviceKind kind);

}  // namespace nibble
