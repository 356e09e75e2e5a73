#include "core/tensor/tensor_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstring>
#include <limits>

#include "core/base/memory_count.h"

namespace nibble {
namespace {

constexpr size_t kHeader = 64;  // torch's alignment: what follows has it too

// torch's own memory with its size in front, so that who frees a pointer knows it.
class CountingAllocator final : public at::Allocator {
 public:
  at::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, at::Device(at::kCPU)};
    auto* const block = static_cast<std::byte*>(c10::alloc_cpu(bytes + kHeader));
    std::memcpy(block, &bytes, sizeof bytes);
    memory_count(DeviceKind::kCpu).add(static_cast<int64_t>(bytes));
    void* const data = block + kHeader;
    return {data, data, &release, at::Device(at::kCPU)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }

 private:
  static void release(void* data) {
    if (data == nullptr) return;
    std::byte* const block = static_cast<std::byte*>(data) - kHeader;
    size_t bytes = 0;
    std::memcpy(&bytes, block, sizeof bytes);
    memory_count(DeviceKind::kCpu).subtract(static_cast<int64_t>(bytes));
    c10::free_cpu(block);
  }
};

}  // namespace

void count_tensor_memory() {
  static CountingAllocator allocator;
  c10::SetCPUAllocator(&allocator, std::numeric_limits<uint8_t>::max());
}

}  // namespace nibble
