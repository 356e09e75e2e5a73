#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

// What the run store holds, as plain structs. Times are Unix milliseconds, UTC.

enum class StepStatus { kRunning, kDone, kFailed };

struct StepRecord {
  int64_t step = 0;
  int64_t started_at_ms = 0;
  std::optional<int64_t> ended_at_ms = {};
  StepStatus status = StepStatus::kRunning;
};

struct Metric {
  std::string name;  ///< "loss", "rollout/tokens_per_s"
  double value = 0;  ///< NaN is kept (as NULL in SQL)
};

struct MetricPoint {
  int64_t step = 0;
  double value = 0;
};

struct SampleRecord {
  int64_t step = 0;
  std::string prompt_id;
  int64_t sample_index = 0;   ///< within the prompt's group, from 0
  double reward = 0;          ///< NaN: not scored
  int64_t length = 0;         ///< response tokens
  std::string finish_reason;  ///< "stop", "length", ...
  int64_t weight_version = 0;
  std::string prompt_text;    ///< cut at kMaxSampleTextBytes; empty after retention
  std::string response_text;  ///< likewise
};

constexpr int64_t kMaxSampleTextBytes = 16 << 10;

enum class Decision { kPrepared, kCommitted, kAborted };

/// One line of the commit log of weight publications.
struct VersionRecord {
  int64_t version = 0;
  int64_t epoch = 0;
  int64_t step = 0;
  Decision decision = Decision::kPrepared;
  std::vector<std::string> members = {};  ///< who prepared
  std::string digest;                     ///< of the plan and content, hexadecimal
  int64_t created_at_ms = 0;
};

enum class Severity { kInfo, kWarning, kError };

struct EventRecord {
  int64_t time_ms = 0;
  Severity severity = Severity::kInfo;
  std::string source;  ///< "trainer/0"
  std::string kind;    ///< stable word to filter by: "worker_lost"
  std::string message;
};

}  // namespace nibble
