#include "cli/run_record.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "cli/run_config.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/store/run_store.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPaceSteps = 10;      // the pace is the mean of as many
constexpr int64_t kMaxEvents = 10'000;  // newest ones that are looked at

fs::path store_of(const fs::path& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    fail(ErrorCode::kNotFound, "run directory '{}' does not exist", directory.string());
  }
  fs::path path = directory / "run.db";
  if (!fs::exists(path, error)) {
    fail(ErrorCode::kNotFound, "'{}' has no run.db; give the run.directory of a job",
         directory.string());
  }
  return path;
}

std::optional<double> metric_at(const RunStore& store, const char* name, int64_t step) {
  const auto series = store.metric_series(name, step);
  if (series.empty() || series[0].step != step || !std::isfinite(series[0].value)) {
    return std::nullopt;
  }
  return series[0].value;
}

// Rows of finished steps have `step_ms`; those of evaluations do not.
void read_pace(const RunStore& store, RunRecord& record) {
  if (!record.last_step) return;
  const auto series = store.metric_series("step_ms", record.last_step->step - kPaceSteps);
  if (series.empty()) return;
  record.finished_step = series.back().step;
  double sum = 0.0;
  for (const MetricPoint& point : series) sum += point.value;
  record.step_ms = sum / static_cast<double>(series.size());
  record.tokens_per_s = metric_at(store, "tokens_per_s", *record.finished_step);
  const auto bytes = metric_at(store, "sync_bytes", *record.finished_step);
  if (!bytes) return;  // a supervised job publishes nothing
  const auto figure = [&](const char* name) {
    return metric_at(store, name, *record.finished_step).value_or(0.0);
  };
  record.publication =
      PublicationFigures{static_cast<int64_t>(*bytes), figure("sync_ms"), figure("sync_wire_ms"),
                         figure("pause_ms"), static_cast<int64_t>(figure("serving_engines"))};
}

void read_versions(const RunStore& store, RunRecord& record) {
  record.committed = store.last_committed_version();
  for (const VersionRecord& version : store.undecided_versions()) {
    record.undecided.push_back(version.version);
  }
  for (const VersionRecord& version : store.versions()) {
    if (version.decision == Decision::kAborted) record.aborted.push_back(version.version);
  }
}

// An engine that was left behind may come back without an event of its own: a later version has it
// among its members. The members of a version are those that prepared; whoever failed after that
// was fenced after the version began.
bool is_fenced_now(const EventRecord& newest, const std::optional<VersionRecord>& committed) {
  if (newest.kind != "engine_fenced") return false;
  if (!committed) return true;
  const auto& members = committed->members;
  const bool took_part = std::find(members.begin(), members.end(), newest.source) != members.end();
  return !took_part || newest.time_ms >= committed->created_at_ms;
}

void read_events(const RunStore& store, RunRecord& record) {
  const auto failures = store.events(1, Severity::kWarning);
  if (!failures.empty()) record.last_failure = failures.front();
  std::map<std::string, FencingRecord> engines;
  for (const EventRecord& event : store.events(kMaxEvents)) {  // newest first
    const bool fenced = event.kind == "engine_fenced";
    if (!fenced && event.kind != "engine_caught_up") continue;
    const auto [found, is_newest] = engines.try_emplace(event.source);
    FencingRecord& engine = found->second;
    if (is_newest) {
      engine.engine = event.source;
      engine.is_fenced = is_fenced_now(event, record.committed);
    }
    ++(fenced ? engine.times_fenced : engine.times_caught_up);
  }
  for (auto& [name, engine] : engines) record.fencing.push_back(std::move(engine));
}

// A configuration of another build may say what this one cannot read; the rest is shown anyway.
std::optional<int64_t> num_steps_of(const fs::path& directory) {
  try {
    return parse_effective_yaml(read_file(directory / "config.yaml", 1 << 20)).run.steps;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

std::optional<double> PublicationFigures::gb_per_s() const {
  if (bytes <= 0 || wire_ms <= 0.0) return std::nullopt;
  return static_cast<double>(bytes) / wire_ms / 1e6;
}

RunRecord read_run_record(const fs::path& directory) {
  const fs::path path = store_of(directory);
  try {
    const RunStore store(path, RunStore::Access::kReadOnly);
    RunRecord record;
    record.directory = directory;
    record.read_at_ms = unix_ms();
    record.last_step = store.last_step();
    record.num_steps = num_steps_of(directory);
    record.coordinator_address = store.meta("coordinator_address").value_or("");
    record.coordinator_id = store.meta("coordinator_id").value_or("");
    read_pace(store, record);
    read_versions(store, record);
    read_events(store, record);
    return record;
  } catch (const Error& error) {
    // Bad input whatever the store calls it: another schema, a file that is not written yet.
    if (exit_code(error.code()) == 2) throw;
    fail(ErrorCode::kInvalidArgument, "{}", error.what());
  }
}

}  // namespace nibble
