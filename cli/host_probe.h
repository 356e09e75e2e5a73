#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

struct LibraryInfo {
  std::string name;
  std::string version;
  std::string file;  ///< what the dynamic loader took; empty: linked in or header-only
};

/// What this process may use of its machine. Bytes; -1: unknown.
struct HostInfo {
  std::string system;             ///< "Debian GNU/Linux 12 (bookworm), Linux 6.1"
  std::string cpu_model;          ///< as the kernel names it
  std::vector<std::string> isas;  ///< what the processor runs of ours: "scalar", "avx2", ...
  std::string selected_isa;       ///< what the kernels use
  int num_cores = 0;              ///< that this process may run on
  double cpu_quota_cores = -1.0;  ///< limit of the cgroup
  int64_t memory_bytes = -1;
  int64_t available_memory_bytes = -1;
  int64_t memory_limit_bytes = -1;  ///< of the cgroup
  std::filesystem::path disk;
  int64_t free_disk_bytes = -1;
  std::vector<LibraryInfo> libraries;
  std::string torch_directory;  ///< where libtorch_cpu.so was loaded from
  bool has_fonts = false;       ///< whether plots can carry text
};
HostInfo probe_host(const std::filesystem::path& disk);

struct GpuInfo {
  std::string name;
  int64_t memory_bytes = -1;
  int compute_capability = 0;  ///< 90: 9.0
};

/// What there is for CUDA. Never fails: an absent driver or device is a finding.
struct CudaInfo {
  bool has_driver = false;
  int driver_version = 0;  ///< 13000: 13.0
  std::vector<GpuInfo> gpus;
  std::string nvcc_version;  ///< "13.0"; empty: none found
};
CudaInfo probe_cuda();

}  // namespace nibble
