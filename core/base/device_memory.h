#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace nibble {

/// Where memory is. A process uses one device of a kind.
enum class DeviceKind : uint8_t {
  kCpu,
  kCuda,
  kCudaHost,    ///< page-locked host memory, which the GPU's kernels read and write over the bus
  kMappedFile,  ///< host memory that is files on a disk (use_mapped_memory), for the CPU's kernels
};

/// Copies into a device's memory that run beside what the calling thread computes there. One
/// thread.
class CopyLane {
 public:
  virtual ~CopyLane() = default;
  /// Starts a copy: it follows what the calling thread has enqueued, and earlier copies. Both ends
  /// must stay until join() and what is enqueued after it.
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;
  /// What the calling thread enqueues from now on follows all copies.
  virtual void join() = 0;
};

/// One of many copies.
struct MemoryCopy {
  void* to = nullptr;
  const void* from = nullptr;
  int64_t bytes = 0;
};

/// Allocates and copies memory of one kind of device. Any thread may call any method.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  /// Uninitialized, aligned to 64 bytes or more. Throws Error{kResourceExhausted} saying how much
  /// was wanted.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* data) noexcept = 0;
  /// Between memory of this device and the host's, in either direction: returns when the bytes are
  /// there. Within the device: follows, and is followed by, what the calling thread enqueues.
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;
  /// copy() of each, all within the device and of different bytes: at once where a call costs.
  virtual void copy_all(std::span<const MemoryCopy> copies) {
    for (const MemoryCopy& one : copies) copy(one.to, one.from, one.bytes);
  }
  virtual void zero(void* data, int64_t bytes) = 0;
  /// Returns when copies within the device that this thread asked for are done.
  virtual void finish() = 0;
  virtual std::unique_ptr<CopyLane> make_copy_lane() = 0;
};

/// The memory of a kind. Throws Error{kUnimplemented} for CUDA if nothing registered it: a build
/// without CUDA, or a process that was not told to use a GPU; and for mapped files likewise.
DeviceMemory& device_memory(DeviceKind kind);

/// Makes CUDA memory known: the GPU's own, and the host's that it reaches. Both must live as long
/// as the process.
void register_cuda_memory(DeviceMemory& memory, DeviceMemory& host_memory);
/// Likewise memory of mapped files.
void register_mapped_memory(DeviceMemory& memory);

}  // namespace nibble
