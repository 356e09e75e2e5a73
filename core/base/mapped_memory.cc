#include "core/base/mapped_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "core/base/device_memory.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kFirstExtent = size_t{1} << 20;
constexpr size_t kLargestExtent = size_t{256} << 20;  // unless one array wants more

// A file without a name, of `bytes` that its disk has promised: a full disk must be an error here
// and not a signal when a page is written.
int make_file(const std::filesystem::path& directory, size_t bytes) {
  std::string name = (directory / "nibble-state-XXXXXX").string();
  const int fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) {
    fail(ErrorCode::kResourceExhausted, "no file can be made in '{}': {}", directory.string(),
         std::strerror(errno));
  }
  ::unlink(name.c_str());
  if (const int error = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes)); error != 0) {
    ::close(fd);
    fail(ErrorCode::kResourceExhausted, "{} more bytes are not to be had in '{}': {}", bytes,
         directory.string(), std::strerror(error));
  }
  return fd;
}

// Many arrays share a mapping, because a process may have 65,530 of these only. It goes when its
// last array does. A new one doubles what there is, so that there are few of much, and at most
// twice what is in use.
class MappedMemory final : public DeviceMemory {
 public:
  void use(const std::filesystem::path& directory) {
    const std::lock_guard lock(mutex_);
    directory_ = directory;
    current_ = nullptr;
  }

  void* allocate(int64_t bytes) override {
    const size_t rounded = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
    const std::lock_guard lock(mutex_);
    if (current_ == nullptr || extents_.at(current_).size - extents_.at(current_).used < rounded) {
      map_extent(rounded);
    }
    Extent& extent = extents_.at(current_);
    std::byte* data = current_ + extent.used;
    extent.used += rounded;
    ++extent.arrays;
    return data;
  }

  void release(void* data) noexcept override {
    const std::lock_guard lock(mutex_);
    auto* const place = static_cast<std::byte*>(data);
    const auto after = extents_.upper_bound(place);
    if (after == extents_.begin()) return;
    const auto extent = std::prev(after);
    if (--extent->second.arrays > 0) return;
    ::munmap(extent->first, extent->second.size);
    mapped_ -= extent->second.size;
    if (current_ == extent->first) current_ = nullptr;
    extents_.erase(extent);
  }

  void copy(void* to, const void* from, int64_t bytes) override { host().copy(to, from, bytes); }
  void zero(void* data, int64_t bytes) override { host().zero(data, bytes); }
  void finish() override {}
  std::unique_ptr<CopyLane> make_copy_lane() override { return host().make_copy_lane(); }

 private:
  struct Extent {
    size_t size = 0;
    size_t used = 0;
    int64_t arrays = 0;
  };

  static DeviceMemory& host() { return device_memory(DeviceKind::kCpu); }

  void map_extent(size_t wanted) {
    const size_t usual = std::clamp(mapped_, kFirstExtent, kLargestExtent);
    const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    const size_t size = (std::max(usual, wanted) + page - 1) / page * page;
    const int fd = make_file(directory_, size);
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ::close(fd);
    if (data == MAP_FAILED) {
      fail(ErrorCode::kResourceExhausted, "{} bytes of a file in '{}' cannot be mapped: {}", size,
           directory_.string(), std::strerror(errno));
    }
    mapped_ += size;
    current_ = static_cast<std::byte*>(data);
    extents_[current_] = {size, 0, 0};
  }

  std::mutex mutex_;
  std::filesystem::path directory_;       // guarded by mutex_
  std::map<std::byte*, Extent> extents_;  // guarded by mutex_, by where they begin
  std::byte* current_ = nullptr;          // guarded by mutex_: has room for the next array
  size_t mapped_ = 0;                     // guarded by mutex_: bytes of all extents
};

}  // namespace

void use_mapped_memory(const std::filesystem::path& directory) {
  if (!std::filesystem::is_directory(directory)) {
    fail(ErrorCode::kInvalidArgument, "'{}' is no directory to map files in", directory.string());
  }
  static MappedMemory& memory = *new MappedMemory;  // arrays of static life may outlive a static
  memory.use(directory);
  register_mapped_memory(memory);
}

}  // namespace nibble
