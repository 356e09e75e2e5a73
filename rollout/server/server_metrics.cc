#include "rollout/server/server_metrics.h"

#include <fmt/format.h>

namespace nibble {
namespace {

template <typename Value>
std::string metric(std::string_view name, std::string_view type, std::string_view help,
                   Value value) {
  return fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n{0} {3}\n", name, type, help, value);
}

std::string engine_text(const EngineSnapshot& engine) {
  std::string text;
  text += metric("nibble_engine_ready", "gauge", "1 while requests are served.",
                 engine.state == EngineState::kReady ? 1 : 0);
  text += metric("nibble_engine_paused", "gauge", "1 while nothing is computed, by /pause.",
                 engine.is_paused ? 1 : 0);
  text += metric("nibble_samples_open", "gauge", "Samples and scored prompts not finished.",
                 engine.open_samples);
  text += metric("nibble_samples_running", "gauge", "Samples with a place in the KV cache.",
                 engine.stats.num_running);
  text += metric("nibble_samples_waiting", "gauge", "Samples that wait for a place.",
                 engine.stats.num_waiting);
  text += metric("nibble_kv_slots_free", "gauge", "Tokens that the KV cache has room for.",
                 engine.stats.free_slots);
  text +=
      metric("nibble_kv_slots", "gauge", "Capacity of the KV cache, in tokens.", engine.kv_slots);
  text += metric("nibble_kv_slots_reusable", "gauge",
                 "Of the free ones, those with the beginning of a prompt that may come again.",
                 engine.stats.reusable_slots);
  text += metric("nibble_cached_prompt_tokens_total", "counter",
                 "Tokens of prompts that were found in the KV cache.", engine.stats.cached_tokens);
  text += metric("nibble_preemptions_total", "counter",
                 "Samples that were stopped for want of memory, to go on later.",
                 engine.stats.num_preemptions);
  text += metric("nibble_guessed_tokens_total", "counter", "Guessed tokens that were checked.",
                 engine.stats.guessed_tokens);
  text += metric("nibble_accepted_tokens_total", "counter", "Of these, drawn as guessed.",
                 engine.stats.accepted_tokens);
  text += metric("nibble_draft_seconds_total", "counter", "Time that guessing took.",
                 engine.stats.draft_ms / 1e3);
  text += metric("nibble_draft_bytes", "gauge", "Host memory of what guesses are taken from.",
                 engine.stats.draft_bytes);
  text +=
      metric("nibble_route_bytes", "gauge",
             "Memory of recorded expert choices in the KV cache's tree.", engine.stats.route_bytes);
  text += metric("nibble_step_seconds", "gauge", "How long the step under way has taken so far.",
                 engine.step_s);
  text += metric("nibble_weight_version", "gauge", "Version of the weights that are served.",
                 engine.version);
  return text;
}

}  // namespace

std::string_view outcome_name(Outcome outcome) {
  switch (outcome) {
    case Outcome::kOk:
      return "ok";
    case Outcome::kRefused:
      return "refused";
    case Outcome::kQueueFull:
      return "queue_full";
    case Outcome::kClientGone:
      return "client_gone";
    case Outcome::kTooLate:
      return "too_late";
    case Outcome::kNotServing:
      return "not_serving";
    case Outcome::kFailed:
      break;
  }
  return "failed";
}

Outcome outcome_of(int http_status) {
  if (http_status < 400) return Outcome::kOk;
  if (http_status == 429) return Outcome::kQueueFull;
  if (http_status == 503) return Outcome::kNotServing;
  if (http_status == 504) return Outcome::kTooLate;
  return http_status < 500 ? Outcome::kRefused : Outcome::kFailed;
}

void DurationHistogram::add(double seconds) {
  size_t bucket = 0;
  while (bucket < kLimits.size() && seconds > kLimits[bucket]) ++bucket;
  ++counts_[bucket];
  sum_ += seconds;
}

std::string DurationHistogram::text(std::string_view name, std::string_view help) const {
  std::string text = fmt::format("# HELP {0} {1}\n# TYPE {0} histogram\n", name, help);
  int64_t count = 0;
  for (size_t i = 0; i < kLimits.size(); ++i) {
    count += counts_[i];
    text += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kLimits[i], count);
  }
  count += counts_.back();
  text +=
      fmt::format("{0}_bucket{{le=\"+Inf\"}} {1}\n{0}_sum {2}\n{0}_count {1}\n", name, count, sum_);
  return text;
}

void ServerMetrics::count_request(std::string_view path, Outcome outcome) {
  const std::lock_guard lock(mutex_);
  ++requests_[{std::string(path), outcome}];
}

void ServerMetrics::count_prompt_tokens(int64_t tokens) {
  const std::lock_guard lock(mutex_);
  prompt_tokens_ += tokens;
}

void ServerMetrics::count_generated_tokens(int64_t tokens) {
  const std::lock_guard lock(mutex_);
  generated_tokens_ += tokens;
}

void ServerMetrics::add_time_to_first_token(double seconds) {
  const std::lock_guard lock(mutex_);
  first_token_.add(seconds);
}

void ServerMetrics::add_time_per_token(double seconds) {
  const std::lock_guard lock(mutex_);
  per_token_.add(seconds);
}

std::string ServerMetrics::text(const EngineSnapshot& engine, int64_t num_connections) const {
  std::string text = engine_text(engine);
  text += metric("nibble_connections", "gauge", "Open connections.", num_connections);
  const std::lock_guard lock(mutex_);
  text += "# HELP nibble_requests_total Requests by path and outcome.\n";
  text += "# TYPE nibble_requests_total counter\n";
  for (const auto& [key, count] : requests_) {
    text += fmt::format("nibble_requests_total{{path=\"{}\",outcome=\"{}\"}} {}\n", key.first,
                        outcome_name(key.second), count);
  }
  text += metric("nibble_prompt_tokens_total", "counter", "Tokens of prompts of accepted requests.",
                 prompt_tokens_);
  text += metric("nibble_generated_tokens_total", "counter", "Tokens drawn.", generated_tokens_);
  text += first_token_.text("nibble_time_to_first_token_seconds",
                            "From the arrival of a request to a sample's first token.");
  text += per_token_.text("nibble_time_per_token_seconds",
                          "Between two tokens, the mean over a sample.");
  return text;
}

}  // namespace nibble
