#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "rollout/server/engine_thread.h"

namespace nibble {

/// How a request ended.
enum class Outcome { kOk, kRefused, kQueueFull, kClientGone, kTooLate, kNotServing, kFailed };
std::string_view outcome_name(Outcome outcome);
/// Of a request that was answered with this status.
Outcome outcome_of(int http_status);

/// Cumulative counts of durations below some limits, as Prometheus wants them.
class DurationHistogram {
 public:
  void add(double seconds);
  /// Lines of text for a metric of this name.
  std::string text(std::string_view name, std::string_view help) const;

 private:
  static constexpr std::array<double, 14> kLimits = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                     0.25,  0.5,    1,     2.5,  5,     10,   30};
  std::array<int64_t, kLimits.size() + 1> counts_{};
  double sum_ = 0;
};

/// What a server counts. Any thread may call any method.
class ServerMetrics {
 public:
  void count_request(std::string_view path, Outcome outcome);
  void count_prompt_tokens(int64_t tokens);
  void count_generated_tokens(int64_t tokens);
  void add_time_to_first_token(double seconds);
  void add_time_per_token(double seconds);

  /// All of it in Prometheus' text format.
  std::string text(const EngineSnapshot& engine, int64_t num_connections) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, Outcome>, int64_t> requests_;  // guarded by mutex_
  int64_t prompt_tokens_ = 0;                                    // guarded by mutex_
  int64_t generated_tokens_ = 0;                                 // guarded by mutex_
  DurationHistogram first_token_;                                // guarded by mutex_
  DurationHistogram per_token_;                                  // guarded by mutex_
};

}  // namespace nibble
