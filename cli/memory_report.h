#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

/// What `nibble plan CONFIG` is asked for.
struct MemoryReportFlags {
  std::filesystem::path config;
  std::vector<std::string> overrides;
  std::string device;         ///< cpu or cuda; empty: cluster.device, auto: what is here
  int64_t micro_batches = 1;  ///< of one optimizer step on a rank
  bool json = false;
};

/// Prints what each trainer rank and each rank of an engine will take of memory, and what trainers
/// gather in a step. Nothing is loaded and nothing started. Throws Error naming what is wrong with
/// the configuration.
void run_memory_report(const MemoryReportFlags& flags);

}  // namespace nibble
