#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/load_client.h"
#include "cli/serve_bench.h"

namespace nibble {

/// What a run was, besides its flags.
struct ServeMeasurement {
  std::vector<LoadAnswer> answers;
  std::string model;
  const char* device = nullptr;  // null: only the server knows
  const char* greedy_check = "";
  double seconds = 0;
  int64_t failed = 0;
  int64_t generated_tokens = 0;
  std::optional<int64_t> kv_slots;
  std::optional<int64_t> preemptions;
  std::optional<double> peak_rss_mib;
  std::optional<double> rss_growth_mib;       // since the warm-up
  std::optional<double> rss_growth_late_mib;  // since half of the answers were there
};

/// One JSON object without line breaks; null for what is not known of a server at a URL.
std::string serve_bench_json(const ServeBenchFlags& flags, const ServeMeasurement& measured);
/// The same for people, on stdout.
void print_serve_bench(const ServeBenchFlags& flags, const ServeMeasurement& measured);

}  // namespace nibble
