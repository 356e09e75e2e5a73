#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <memory>

#include "cli/host_probe.h"

namespace nibble {
namespace {

// The few driver functions used, looked up at run time: `nibble` must start without a driver.
struct Driver {
  void* handle = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  Driver() = default;
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;
  ~Driver() {
    if (handle != nullptr) ::dlclose(handle);
  }
  template <typename... Args>
  bool call(const char* name, Args... args) const {
    if (handle == nullptr) return false;
    auto* function = reinterpret_cast<int (*)(Args...)>(::dlsym(handle, name));
    return function != nullptr && function(args...) == 0;
  }
};

constexpr int kComputeCapabilityMajor = 75;  // CUdevice_attribute of cuda.h
constexpr int kComputeCapabilityMinor = 76;

GpuInfo probe_gpu(const Driver& driver, int device) {
  GpuInfo gpu;
  std::array<char, 256> name{};
  if (driver.call("cuDeviceGetName", name.data(), static_cast<int>(name.size()), device)) {
    gpu.name = name.data();
  }
  size_t bytes = 0;
  if (driver.call("cuDeviceTotalMem_v2", &bytes, device)) {
    gpu.memory_bytes = static_cast<int64_t>(bytes);
  }
  int major = 0;
  int minor = 0;
  if (driver.call("cuDeviceGetAttribute", &major, kComputeCapabilityMajor, device) &&
      driver.call("cuDeviceGetAttribute", &minor, kComputeCapabilityMinor, device)) {
    gpu.compute_capability = 10 * major + minor;
  }
  return gpu;
}

// "13.0" of "Cuda compilation tools, release 13.0, V13.0.88".
std::string read_nvcc_version() {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(
      ::popen("{ nvcc --version || /usr/local/cuda/bin/nvcc --version; } 2>/dev/null", "re"),
      ::pclose);
  if (!pipe) return "";
  std::string text;
  std::array<char, 512> buffer{};
  while (text.size() < 8192 && std::fgets(buffer.data(), buffer.size(), pipe.get()) != nullptr) {
    text += buffer.data();
  }
  constexpr std::string_view kMark = "release ";
  const size_t begin = text.find(kMark);
  if (begin == std::string::npos) return "";
  const size_t version = begin + kMark.size();
  return text.substr(version, text.find(',', version) - version);
}

}  // namespace

CudaInfo probe_cuda() {
  CudaInfo cuda;
  cuda.nvcc_version = read_nvcc_version();
  const Driver driver;
  cuda.has_driver = driver.call("cuDriverGetVersion", &cuda.driver_version);
  int count = 0;
  if (!driver.call("cuInit", 0u) || !driver.call("cuDeviceGetCount", &count)) return cuda;
  for (int device = 0; device < count; ++device) cuda.gpus.push_back(probe_gpu(driver, device));
  return cuda;
}

}  // namespace nibble
