#include "cli/serve_bench_report.h"

#include <fmt/format.h>

#include "cli/length_tail.h"
#include "core/base/json.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

template <typename Number>
OrderedJson or_null(const std::optional<Number>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}

struct Quantiles {
  double p50 = 0;
  double p95 = 0;
  double p99 = 0;
  explicit Quantiles(const std::vector<double>& values)
      : p50(quantile(values, 0.5)), p95(quantile(values, 0.95)), p99(quantile(values, 0.99)) {}
};

struct Times {
  std::vector<double> first_ms, per_token_ms, total_ms;
  explicit Times(const std::vector<LoadAnswer>& answers) {
    for (const LoadAnswer& answer : answers) {
      if (!answer.failure.empty()) continue;
      first_ms.push_back(answer.first_ms);
      total_ms.push_back(answer.total_ms);
      // What came in one part says nothing about the time between tokens.
      if (answer.num_tokens < 2 || answer.last_ms <= answer.first_ms) continue;
      per_token_ms.push_back((answer.last_ms - answer.first_ms) /
                             static_cast<double>(answer.num_tokens - 1));
    }
  }
};

}  // namespace

std::string serve_bench_json(const ServeBenchFlags& flags, const ServeMeasurement& measured) {
  OrderedJson json = {
      {"bench", "serve"},
      {"engine", flags.url.empty() ? OrderedJson("nibble") : OrderedJson(nullptr)},
      {"model", measured.model},
      {"url", flags.url.empty() ? OrderedJson(nullptr) : OrderedJson(flags.url)},
      {"device", measured.device == nullptr ? OrderedJson(nullptr) : OrderedJson(measured.device)},
      {"threads", flags.url.empty() ? OrderedJson(ops::num_threads()) : OrderedJson(nullptr)},
      {"concurrency", flags.concurrency},
      {"requests", flags.requests},
      {"failed", measured.failed},
      {"prompt_tokens", flags.prompt_tokens},
      {"new_tokens_median", flags.new_tokens},
      {"max_new_tokens", flags.max_new_tokens},
      {"length_sigma", flags.length_sigma},
      {"temperature", flags.temperature},
      {"seed", flags.seed},
      {"generated_tokens", measured.generated_tokens},
      {"seconds", measured.seconds},
      {"tokens_per_s", static_cast<double>(measured.generated_tokens) / measured.seconds}};
  const auto add = [&json](const std::string& name, const std::vector<double>& values) {
    const Quantiles q(values);
    json[name + "_p50"] = q.p50;
    json[name + "_p95"] = q.p95;
    json[name + "_p99"] = q.p99;
  };
  const Times times(measured.answers);
  add("ttft_ms", times.first_ms);
  add("tpot_ms", times.per_token_ms);
  add("latency_ms", times.total_ms);
  json["kv_slots"] = or_null(measured.kv_slots);
  json["preemptions"] = or_null(measured.preemptions);
  json["peak_rss_mib"] = or_null(measured.peak_rss_mib);
  json["rss_growth_mib"] = or_null(measured.rss_growth_mib);
  json["rss_growth_late_mib"] = or_null(measured.rss_growth_late_mib);
  json["greedy_check"] = measured.greedy_check;
  return json.dump();
}

void print_serve_bench(const ServeBenchFlags& flags, const ServeMeasurement& measured) {
  fmt::print("{}: {} requests over {} connections, {} failed\n", measured.model, flags.requests,
             flags.concurrency, measured.failed);
  fmt::print("  {:<22}{:.1f}, {} in {:.2f} s\n", "tokens/s",
             static_cast<double>(measured.generated_tokens) / measured.seconds,
             measured.generated_tokens, measured.seconds);
  const auto print_times = [](const char* name, const std::vector<double>& values) {
    const Quantiles q(values);
    fmt::print("  {:<22}p50 {:.1f}  p95 {:.1f}  p99 {:.1f}\n", name, q.p50, q.p95, q.p99);
  };
  const Times times(measured.answers);
  print_times("ms to first token", times.first_ms);
  print_times("ms per token", times.per_token_ms);
  print_times("ms of a request", times.total_ms);
  if (measured.kv_slots) {
    fmt::print("  {:<22}{} tokens, {} preemptions\n", "KV cache", *measured.kv_slots,
               measured.preemptions.value_or(0));
  }
  if (measured.peak_rss_mib) {
    fmt::print("  {:<22}peak {:.0f} MiB, grown by {:.1f} MiB, of it {:.1f} in the second half\n",
               "memory", *measured.peak_rss_mib, *measured.rss_growth_mib,
               *measured.rss_growth_late_mib);
  }
}

}  // namespace nibble
