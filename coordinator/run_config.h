#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/placement.h"
#include "core/config/fields.h"
#include "core/data/text_records.h"
#include "core/ops/numerics.h"

namespace nibble {

/// Key `run`.
constexpr std::array<EnumName<Numerics>, 2> enum_names(Numerics) {
  return {{{Numerics::kExact, "exact"}, {Numerics::kFast, "fast"}}};
}
struct RunSection {
  std::filesystem::path directory = "runs/run";
  int64_t steps = 40;
  int64_t seed = 1;
  Numerics numerics = Numerics::kExact;
};
template <typename Visitor>
void visit_fields(Visitor& v, RunSection& c) {
  v.field("directory", c.directory, "", "everything the run writes");
  v.field("steps", c.steps, "steps", "rollout steps to train", AtLeast{1});
  v.field("seed", c.seed, "", "of prompts and sampling", AtLeast{0});
  v.field("numerics", c.numerics, "",
          "exact: trainer and rollout agree to the bit (on CPU always); fast: to rounding");
}

/// Key `cluster`.
enum class DeviceChoice { kAuto, kCpu, kCuda };
constexpr std::array<EnumName<DeviceChoice>, 3> enum_names(DeviceChoice) {
  return {
      {{DeviceChoice::kAuto, "auto"}, {DeviceChoice::kCpu, "cpu"}, {DeviceChoice::kCuda, "cuda"}}};
}
enum class TransportChoice { kAuto, kGloo, kNccl };
constexpr std::array<EnumName<TransportChoice>, 3> enum_names(TransportChoice) {
  return {{{TransportChoice::kAuto, "auto"},
           {TransportChoice::kGloo, "gloo"},
           {TransportChoice::kNccl, "nccl"}}};
}
constexpr std::array<EnumName<Placement>, 2> enum_names(Placement) {
  return {{{Placement::kSeparate, "separate"}, {Placement::kColocated, "colocated"}}};
}
struct ClusterSection {
  DeviceChoice device = DeviceChoice::kAuto;
  Placement placement = Placement::kSeparate;
  int64_t trainers = 1;
  int64_t rollout_workers = 1;
  int64_t threads_per_worker = 0;
  int64_t start_timeout_ms = 300'000;
  int64_t lease_ms = 20'000;
  int64_t external_engines = 0;
  std::string host = "127.0.0.1";

  int64_t num_workers() const {
    return placement == Placement::kColocated ? trainers : trainers + rollout_workers;
  }
};
template <typename Visitor>
void visit_fields(Visitor& v, ClusterSection& c) {
  v.field("device", c.device, "",
          "what workers compute on; auto: a GPU where a worker's machine has one");
  v.field("placement", c.placement, "",
          "separate: a process for each role; colocated: trainer rank i is rollout engine i too");
  v.field("trainers", c.trainers, "processes", "trainer ranks", Range{1, 1024});
  v.field("rollout_workers", c.rollout_workers, "processes",
          "rollout engines, times rollout.tensor; colocated: cluster.trainers; sft: 0",
          Range{0, 1024});
  v.field("threads_per_worker", c.threads_per_worker, "threads",
          "0: all cores a role may use while the other waits", AtLeast{0});
  v.field("start_timeout_ms", c.start_timeout_ms, "ms", "until all workers have joined and loaded",
          AtLeast{1});
  v.field("lease_ms", c.lease_ms, "ms", "a worker silent for longer is lost", AtLeast{1000});
  v.field("external_engines", c.external_engines, "engines",
          "engines of others that may read each version (docs/weight_sync_protocol.md); 0: none",
          Range{0, 16});
  v.field("host", c.host, "", "address the coordinator listens on");
}

/// Key `data`.
struct DataSection {
  std::filesystem::path train;
  std::string label_key = "label";
  RecordKeys keys;
  bool shuffle = true;
};
template <typename Visitor>
void visit_fields(Visitor& v, DataSection& c) {
  v.field("train", c.train, "", "JSON lines of prompts and labels; sft: of responses or texts");
  v.field("prompt_key", c.keys.prompt, "", "a string, or a list of chat messages");
  v.field("label_key", c.label_key, "", "what the reward compares with");
  v.field("response_key", c.keys.response, "", "sft: what follows the prompt and is learned");
  v.field("text_key", c.keys.text, "", "sft: a whole text, in a record without prompt");
  v.field("shuffle", c.shuffle, "", "by run.seed, anew each epoch");
}

/// One of `eval.sets`. What is left out is as `eval` and `rollout` say.
struct EvalSetSection {
  std::string name;
  std::filesystem::path data;
  std::optional<int64_t> samples;
  std::optional<double> temperature;
  double top_p = 1.0;
  int64_t top_k = 0;
  std::optional<int64_t> max_new_tokens;
};
template <typename Visitor>
void visit_fields(Visitor& v, EvalSetSection& c) {
  v.field("name", c.name, "", "in metrics: eval_NAME_reward_mean");
  v.field("data", c.data, "", "JSON lines of held-out prompts");
  v.field("samples", c.samples, "samples", "of each prompt; default: eval.samples", AtLeast{1});
  v.field("temperature", c.temperature, "", "0: greedy; default: eval.temperature", AtLeast{0});
  v.field("top_p", c.top_p, "", "nucleus of the distribution that may be drawn; 1 = all",
          Range{0.000001, 1});
  v.field("top_k", c.top_k, "tokens", "most likely tokens that may be drawn; 0 = all", AtLeast{0});
  v.field("max_new_tokens", c.max_new_tokens, "tokens",
          "longest response; default: rollout.max_new_tokens", AtLeast{1});
}

/// Key `eval`.
struct EvalSection {
  std::filesystem::path data;
  std::vector<EvalSetSection> sets;
  int64_t every = 10;
  int64_t samples = 8;
  double temperature = 1.0;
};
template <typename Visitor>
void visit_fields(Visitor& v, EvalSection& c) {
  v.field("data", c.data, "", "JSON lines of held-out prompts; empty: no evaluation, or sets");
  v.section("sets", c.sets, "several held-out sets instead, each with metrics of its own");
  v.field("every", c.every, "steps", "also before the first step and after the last", AtLeast{1});
  v.field("samples", c.samples, "samples", "of each prompt", AtLeast{1});
  v.field("temperature", c.temperature, "", "of sampling", Above{0});
}

/// Key `checkpoint`.
struct CheckpointSection {
  int64_t every = 10;
  int64_t keep = 2;
};
template <typename Visitor>
void visit_fields(Visitor& v, CheckpointSection& c) {
  v.field("every", c.every, "steps", "and after the last step", AtLeast{1});
  v.field("keep", c.keep, "checkpoints", "newest ones that are kept", AtLeast{1});
}

/// Key `weight_sync`.
struct WeightSyncSection {
  TransportChoice transport = TransportChoice::kAuto;
  int64_t timeout_ms = 120'000;
  int64_t min_mb_per_s = 20;
  int64_t retries = 1;
  bool delta = false;
  int64_t whole_every = 20;
  bool in_place = false;
};
template <typename Visitor>
void visit_fields(Visitor& v, WeightSyncSection& c) {
  v.field("transport", c.transport, "",
          "between GPUs, weights and gradients: nccl, or gloo through host memory; auto: nccl");
  v.field("timeout_ms", c.timeout_ms, "ms", "deadline of one publication", AtLeast{1});
  v.field(
      "min_mb_per_s", c.min_mb_per_s, "MB/s",
      "an engine whose weights arrive slower is left behind before timeout_ms; 0: it is waited for",
      Range{0, 1'000'000});
  v.field("retries", c.retries, "", "publications tried again before the run stops", AtLeast{0});
  v.field("delta", c.delta, "",
          "send what changed since the version before, where the engine has it; on CPUs");
  v.field("whole_every", c.whole_every, "versions", "with delta: a whole version every so often",
          AtLeast{1});
  v.field(
      "in_place", c.in_place, "",
      "replace an engine's weights where they are, for models of which two do not fit: it serves "
      "nothing until the new ones are whole");
}

/// Key `logging`.
enum class LogLevel { kTrace, kDebug, kInfo, kWarn, kError, kOff };
constexpr std::array<EnumName<LogLevel>, 6> enum_names(LogLevel) {
  return {{{LogLevel::kTrace, "trace"},
           {LogLevel::kDebug, "debug"},
           {LogLevel::kInfo, "info"},
           {LogLevel::kWarn, "warn"},
           {LogLevel::kError, "error"},
           {LogLevel::kOff, "off"}}};
}
struct LoggingSection {
  LogLevel level = LogLevel::kInfo;
  int64_t sample_text_steps = 50;
  bool changes_by_layer = false;
};
template <typename Visitor>
void visit_fields(Visitor& v, LoggingSection& c) {
  v.field("level", c.level, "", "of the workers' logs");
  v.field("sample_text_steps", c.sample_text_steps, "steps",
          "texts of samples older than this are dropped from run.db", AtLeast{1});
  v.field("changes_by_layer", c.changes_by_layer, "",
          "metrics: what share of codes, scales and bytes a step changed, for each layer too");
}

/// What the coordinator itself reads.
struct CoordinatorConfig {
  RunSection run;
  ClusterSection cluster;
  DataSection data;
  EvalSection eval;
  CheckpointSection checkpoint;
  WeightSyncSection weight_sync;
  LoggingSection logging;
  int64_t max_rollbacks = 0;  ///< guards.max_rollbacks
};

}  // namespace nibble
