#include "cli/host_probe.h"

#include <cairo.h>
#include <dlfcn.h>
#include <google/protobuf/stubs/common.h>
#include <grpcpp/grpcpp.h>
#include <openssl/crypto.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <sched.h>
#include <spdlog/version.h>
#include <sqlite3.h>
#include <sys/utsname.h>
#include <torch/headeronly/version.h>
#include <utf8proc.h>

#include <array>
#include <fstream>
#include <optional>
#include <system_error>

#include "cli/chart.h"
#include "core/base/fail.h"
#include "core/kernels/isa.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// The rest of the first line of `file` that starts with `key`, without separators and quotes.
std::optional<std::string> line_value(const char* file, std::string_view key) {
  std::ifstream stream(file);
  std::string line;
  while (std::getline(stream, line)) {
    if (!line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t:=\"", key.size());
    const size_t end = line.find_last_not_of(" \t\"");
    if (begin == std::string::npos || end < begin) return "";
    return line.substr(begin, end - begin + 1);
  }
  return std::nullopt;
}

int64_t meminfo_bytes(std::string_view key) {
  const auto value = line_value("/proc/meminfo", key);  // "24000000 kB"
  return value ? std::strtoll(value->c_str(), nullptr, 10) * 1024 : -1;
}

std::string first_word(const char* file) {
  std::ifstream stream(file);
  std::string word;
  stream >> word;
  return word;
}

void probe_limits(HostInfo& host) {
  std::ifstream quota("/sys/fs/cgroup/cpu.max");
  double limit_us = 0.0;
  double period_us = 0.0;
  if (quota >> limit_us >> period_us && period_us > 0.0) {  // "max 100000": no limit
    host.cpu_quota_cores = limit_us / period_us;
  }
  const std::string memory = first_word("/sys/fs/cgroup/memory.max");
  if (!memory.empty() && memory != "max") {
    host.memory_limit_bytes = std::strtoll(memory.c_str(), nullptr, 10);
  }
}

int count_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

// The file that holds a function or object, as the loader named it.
std::string file_of(const void* symbol) {
  Dl_info info{};
  return ::dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

std::string pcre2_version() {
  std::array<char, 64> text{};
  pcre2_config(PCRE2_CONFIG_VERSION, text.data());
  return text.data();
}

std::string fmt_version() {
  return fmt::format("{}.{}.{}", FMT_VERSION / 10'000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
}

std::string protobuf_version() {
  constexpr int version = GOOGLE_PROTOBUF_VERSION;  // 3021012
  return fmt::format("{}.{}.{}", version / 1'000'000, version / 1000 % 1000, version % 1000);
}

std::string torch_file() {
  // By name, as no header of torch is needed here for anything else.
  return file_of(::dlsym(RTLD_DEFAULT, "_ZN2at15set_num_threadsEi"));
}

std::vector<LibraryInfo> list_libraries() {
  const auto address = [](auto* function) { return reinterpret_cast<const void*>(function); };
  return {
      {"libtorch", TORCH_VERSION, torch_file()},
      {"grpc", grpc::Version(), file_of(::dlsym(RTLD_DEFAULT, "grpc_version_string"))},
      {"protobuf", protobuf_version(), ""},
      {"openssl", OpenSSL_version(OPENSSL_FULL_VERSION_STRING), file_of(address(&OpenSSL_version))},
      {"sqlite", sqlite3_libversion(), file_of(address(&sqlite3_libversion))},
      {"pcre2", pcre2_version(), file_of(address(&pcre2_config_8))},
      {"utf8proc", utf8proc_version(), file_of(address(&utf8proc_version))},
      {"cairo", cairo_version_string(), file_of(address(&cairo_version_string))},
      {"spdlog", fmt::format("{}.{}.{}", SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR, SPDLOG_VER_PATCH), ""},
      {"fmt", fmt_version(), ""}};
}

}  // namespace

HostInfo probe_host(const fs::path& disk) {
  HostInfo host;
  utsname name{};
  ::uname(&name);
  host.system =
      fmt::format("{}, {} {} {}", line_value("/etc/os-release", "PRETTY_NAME").value_or("unknown"),
                  name.sysname, name.release, name.machine);
  host.cpu_model = line_value("/proc/cpuinfo", "model name").value_or("unknown");
  for (const auto isa : {kernels::Isa::kScalar, kernels::Isa::kAvx2, kernels::Isa::kAvx512}) {
    if (kernels::isa_is_available(isa)) host.isas.emplace_back(kernels::isa_name(isa));
  }
  host.selected_isa = kernels::isa_name(kernels::selected_isa());
  host.num_cores = count_cores();
  probe_limits(host);
  host.memory_bytes = meminfo_bytes("MemTotal");
  host.available_memory_bytes = meminfo_bytes("MemAvailable");
  host.disk = fs::absolute(disk);
  std::error_code error;
  const fs::space_info space = fs::space(disk, error);
  if (error) {
    fail(ErrorCode::kNotFound, "cannot look at the disk of '{}': {}", disk.string(),
         error.message());
  }
  host.free_disk_bytes = static_cast<int64_t>(space.available);
  host.libraries = list_libraries();
  host.torch_directory = fs::path(host.libraries.front().file).parent_path().string();
  host.has_fonts = chart_fonts_exist();
  return host;
}

}  // namespace nibble
