#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/store/records.h"

namespace nibble {

class Database;

/// The record of one run: a SQLite file (WAL, synchronous=FULL) that the coordinator writes and
/// that dashboards, `nibble status` and a user's own SQL may read at the same time. Every method
/// is one transaction, durable when it returns. Any thread may call any method.
///
/// Errors of every method: kResourceExhausted on a full disk, kDataLoss for a damaged file,
/// kUnavailable if another process holds the write lock for 10 s.
class RunStore {
 public:
  enum class Access { kReadWrite, kReadOnly };

  /// Opens `path`; kReadWrite makes it if there is none, checks it and migrates an older schema.
  /// Throws Error{kFailedPrecondition} for a newer schema, Error{kDataLoss} for a damaged file.
  explicit RunStore(const std::filesystem::path& path, Access access = Access::kReadWrite);
  ~RunStore();

  /// A step that is begun again (after a restart) starts over as running.
  void begin_step(int64_t step, int64_t started_at_ms);
  /// Throws Error{kFailedPrecondition} if the step was not begun.
  void end_step(int64_t step, StepStatus status, int64_t ended_at_ms);
  std::vector<StepRecord> steps(int64_t first_step = 0) const;  // ascending
  std::optional<StepRecord> last_step() const;

  /// A metric written again for the same step replaces the old value.
  void record_metrics(int64_t step, std::span<const Metric> metrics);
  std::vector<std::string> metric_names() const;
  std::vector<MetricPoint> metric_series(std::string_view name, int64_t first_step = 0) const;

  /// Texts are cut at kMaxSampleTextBytes, between characters.
  void record_samples(std::span<const SampleRecord> samples);
  std::vector<SampleRecord> samples(int64_t step, int64_t limit) const;
  /// Deletes the texts (not the figures) of samples of steps before `first_kept_step`. Returns how
  /// many samples lost theirs.
  int64_t drop_sample_texts(int64_t first_kept_step);
  /// Forgets steps, metrics and samples after `step`, for a run that resumes from it. Versions and
  /// events stay: a version number never comes back.
  void rewind_to(int64_t step);

  /// Appends to the commit log. A version must be prepared before it is committed, has one final
  /// decision, and is higher than every version before it; otherwise Error{kFailedPrecondition}.
  /// Aborting without prepare is allowed.
  void record_version(const VersionRecord& record);
  std::vector<VersionRecord> versions(int64_t first_version = 0) const;  // in the order written
  std::optional<VersionRecord> last_committed_version() const;
  /// Prepared versions without a decision: after a crash these are aborted.
  std::vector<VersionRecord> undecided_versions() const;

  void record_event(const EventRecord& event);
  /// The newest `limit` events, newest first, at least as severe as `min_severity`.
  std::vector<EventRecord> events(int64_t limit, Severity min_severity = Severity::kInfo) const;

  void set_meta(std::string_view key, std::string_view value);
  std::optional<std::string> meta(std::string_view key) const;

 private:
  struct Statements;
  std::vector<VersionRecord> read_versions(std::string_view filter, int64_t parameter) const;

  mutable std::mutex mutex_;
  std::unique_ptr<Database> database_;      // guarded by mutex_
  std::unique_ptr<Statements> statements_;  // guarded by mutex_; goes before database_
};

}  // namespace nibble
