#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/host_probe.h"
#include "core/base/json.h"
#include "core/device/cuda_device.h"

namespace nibble {
namespace {

struct DoctorFlags {
  std::filesystem::path disk = ".";
  bool json = false;
};

double gigabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

// What is missing or slow here, and what to do about it.
std::vector<std::string> find_advice(const HostInfo& host, const CudaInfo& cuda) {
  std::vector<std::string> advice;
  if (host.isas.size() == 1) {
    advice.emplace_back(
        "The processor has no AVX2: kernels run many times slower; use one with AVX2 or AVX-512.");
  }
  if (host.cpu_quota_cores > 0 && host.cpu_quota_cores < host.num_cores) {
    advice.push_back(fmt::format(
        "The container may use {:.1f} of {} visible cores: pass --threads {}, as more "
        "threads would wait for each other.",
        host.cpu_quota_cores, host.num_cores, std::max(1, static_cast<int>(host.cpu_quota_cores))));
  }
  if (!cuda.has_driver) {
    advice.emplace_back(
        "No NVIDIA driver: everything runs on the CPU. For a GPU install the driver (nvidia-smi "
        "must work).");
  } else if (cuda.gpus.empty()) {
    advice.emplace_back(
        "The NVIDIA driver shows no device to this process; check nvidia-smi and "
        "CUDA_VISIBLE_DEVICES, and give the container its GPUs.");
  }
  constexpr int kOldestDriver = 13000;  // what torch's CUDA 13.0 runs on
  constexpr int kOldestCapability = 80;
  if (cuda.has_driver && cuda.driver_version < kOldestDriver) {
    advice.push_back(fmt::format(
        "The NVIDIA driver is for CUDA {}.{}; Nibble needs one for CUDA 13.0 (release 580) or "
        "newer: update the driver.",
        cuda.driver_version / 1000, cuda.driver_version % 1000 / 10));
  }
  for (const GpuInfo& gpu : cuda.gpus) {
    if (gpu.compute_capability >= kOldestCapability) continue;
    advice.push_back(
        fmt::format("{} has compute capability {}.{}; Nibble needs 8.0 or newer: hide it with "
                    "CUDA_VISIBLE_DEVICES, or work on the CPU.",
                    gpu.name, gpu.compute_capability / 10, gpu.compute_capability % 10));
  }
  if (!cuda.gpus.empty() && !ops::is_cuda_build()) {
    advice.emplace_back(
        "This nibble was built without CUDA and does not use the GPU: build it with "
        "`cmake --preset cuda`.");
  }
  if (cuda.nvcc_version.empty()) {
    advice.emplace_back(
        "No nvcc: needed only to build the CUDA kernels (CUDA toolkit 13.0, on the PATH).");
  }
  if (host.free_disk_bytes < 10'000'000'000) {
    advice.push_back(fmt::format(
        "Only {:.1f} GB free on the disk of '{}': a checkpoint of 1 B parameters takes 2 GB in "
        "BF16 and 14 GB with optimizer state.",
        gigabytes(host.free_disk_bytes), host.disk.string()));
  }
  if (!host.has_fonts) {
    advice.emplace_back("No fonts: `nibble plot` needs one, e.g. apt install fonts-dejavu-core.");
  }
  return advice;
}

OrderedJson report_json(const HostInfo& host, const CudaInfo& cuda) {
  OrderedJson libraries = OrderedJson::object();
  for (const LibraryInfo& library : host.libraries) {
    libraries[library.name] = {{"version", library.version}, {"file", library.file}};
  }
  OrderedJson gpus = OrderedJson::array();
  for (const GpuInfo& gpu : cuda.gpus) {
    gpus.push_back({{"name", gpu.name},
                    {"memory_bytes", gpu.memory_bytes},
                    {"compute_capability", gpu.compute_capability}});
  }
  const auto known = [](auto value) {
    return value < 0 ? OrderedJson(nullptr) : OrderedJson(value);
  };
  const auto text = [](const std::string& value) {
    return value.empty() ? OrderedJson(nullptr) : OrderedJson(value);
  };
  return {
      {"version", NIBBLE_VERSION},
      {"system", host.system},
      {"cpu",
       {{"model", host.cpu_model},
        {"isas", host.isas},
        {"selected_isa", host.selected_isa},
        {"cores", host.num_cores},
        {"quota_cores", known(host.cpu_quota_cores)}}},
      {"memory",
       {{"total_bytes", known(host.memory_bytes)},
        {"available_bytes", known(host.available_memory_bytes)},
        {"limit_bytes", known(host.memory_limit_bytes)}}},
      {"disk", {{"path", host.disk.string()}, {"free_bytes", known(host.free_disk_bytes)}}},
      {"torch",
       {{"version", host.libraries.front().version}, {"directory", text(host.torch_directory)}}},
      {"libraries", libraries},
      {"cuda",
       {{"driver_version", cuda.has_driver ? OrderedJson(cuda.driver_version) : nullptr},
        {"gpus", gpus},
        {"nvcc_version", text(cuda.nvcc_version)}}},
      {"advice", find_advice(host, cuda)}};
}

void print_report(const HostInfo& host, const CudaInfo& cuda) {
  fmt::print("nibble {}\n", NIBBLE_VERSION);
  fmt::print("  system   {}\n", host.system);
  fmt::print("  cpu      {}; {} cores; kernels: {} (of {})\n", host.cpu_model, host.num_cores,
             host.selected_isa, fmt::join(host.isas, ", "));
  fmt::print("  memory   {:.1f} GB, {:.1f} GB available\n", gigabytes(host.memory_bytes),
             gigabytes(host.available_memory_bytes));
  if (host.memory_limit_bytes > 0) {
    fmt::print("           the container may use {:.1f} GB\n", gigabytes(host.memory_limit_bytes));
  }
  fmt::print("  disk     {:.1f} GB free at {}\n", gigabytes(host.free_disk_bytes),
             host.disk.string());
  for (const LibraryInfo& library : host.libraries) {
    fmt::print("  {:<8} {}{}{}\n", library.name, library.version, library.file.empty() ? "" : "  ",
               library.file);
  }
  if (cuda.has_driver) {
    fmt::print("  cuda     driver {}.{}, {} devices\n", cuda.driver_version / 1000,
               cuda.driver_version % 1000 / 10, cuda.gpus.size());
  } else {
    fmt::print("  cuda     no driver\n");
  }
  for (const GpuInfo& gpu : cuda.gpus) {
    fmt::print("  gpu      {}, {:.1f} GB, sm_{}\n", gpu.name, gigabytes(gpu.memory_bytes),
               gpu.compute_capability);
  }
  fmt::print("  nvcc     {}\n", cuda.nvcc_version.empty() ? "none" : cuda.nvcc_version);
  const auto advice = find_advice(host, cuda);
  if (advice.empty()) fmt::print("Nothing is missing.\n");
  for (const std::string& line : advice) fmt::print("- {}\n", line);
}

void run_doctor(const DoctorFlags& flags) {
  const HostInfo host = probe_host(flags.disk);
  const CudaInfo cuda = probe_cuda();
  if (flags.json) {
    fmt::print("{}\n", report_json(host, cuda).dump());
  } else {
    print_report(host, cuda);
  }
}

}  // namespace

void add_doctor_command(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("doctor", "What this machine has, what is missing, and how to get it");
  auto flags = std::make_shared<DoctorFlags>();  // shared: parse and work are two callbacks
  command->add_option("--disk", flags->disk, "folder whose disk is looked at")
      ->capture_default_str();
  command->add_flag("--json", flags->json, "print one JSON object");
  command->footer("Example:\n  nibble doctor --json");
  command->callback([flags, &context] { context.run = [flags] { run_doctor(*flags); }; });
}

}  // namespace nibble
