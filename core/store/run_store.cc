#include "core/store/run_store.h"

#include <array>
#include <map>

#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/store/schema.h"
#include "core/store/sqlite.h"

namespace nibble {
namespace {

constexpr int kBusyTimeoutMs = 10'000;
constexpr int64_t kWalKeptBytes = 64 << 20;

constexpr std::array<std::string_view, 3> kStepStatus = {"running", "done", "failed"};
constexpr std::array<std::string_view, 3> kDecision = {"prepared", "committed", "aborted"};
constexpr std::array<std::string_view, 3> kSeverity = {"info", "warning", "error"};

template <typename Enum>
std::string_view name_of(const std::array<std::string_view, 3>& names, Enum value) {
  return names.at(static_cast<size_t>(value));
}

template <typename Enum>
Enum value_of(const std::array<std::string_view, 3>& names, std::string_view name) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
  }
  fail(ErrorCode::kDataLoss, "the run store holds '{}' where a fixed word belongs", name);
}

/// At most kMaxSampleTextBytes of UTF-8, not ending inside a character.
std::string_view cut_text(std::string_view text) {
  if (static_cast<int64_t>(text.size()) <= kMaxSampleTextBytes) return text;
  size_t size = kMaxSampleTextBytes;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80) --size;
  return text.substr(0, size);
}

std::string members_to_json(const std::vector<std::string>& members) {
  return Json(members).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<std::string> members_from_json(const std::string& text) {
  const Json members = parse_json(text, "versions.members");
  std::vector<std::string> out;
  for (const Json& member : members) out.push_back(member.get<std::string>());
  return out;
}

void prepare_for_writing(Database& database) {
  // WAL lets readers go on beside the writer; FULL syncs it at each commit, which is what makes a
  // recorded decision survive a power cut.
  const std::string mode = database.query_text("PRAGMA journal_mode = WAL");
  if (mode != "wal") {
    fail(ErrorCode::kInvalidArgument,
         "run store '{}' is on a file system without shared memory maps (journal mode '{}'); put "
         "it on a local disk",
         database.path().string(), mode);
  }
  database.execute("PRAGMA synchronous = FULL");
  database.execute(fmt::format("PRAGMA journal_size_limit = {}", kWalKeptBytes));
  const std::string check = database.query_text("PRAGMA quick_check(1)");
  if (check != "ok") {
    fail(ErrorCode::kDataLoss, "run store '{}' is damaged: {}; restore it from a copy",
         database.path().string(), check);
  }
  migrate_store(database);
}

StepRecord read_step(const Statement& row) {
  return {.step = row.column_int(0),
          .started_at_ms = row.column_int(1),
          .ended_at_ms = row.column_optional_int(2),
          .status = value_of<StepStatus>(kStepStatus, row.column_text(3))};
}

}  // namespace

/// Each SQL text is compiled on first use and kept.
struct RunStore::Statements {
  explicit Statements(Database& owner) : database(owner) {}

  Statement& operator()(std::string_view sql) {
    auto found = compiled.find(sql);
    if (found == compiled.end())
      found = compiled.try_emplace(std::string(sql), database, sql).first;
    found->second.reset();
    return found->second;
  }

  Database& database;
  std::map<std::string, Statement, std::less<>> compiled;
};

RunStore::RunStore(const std::filesystem::path& path, Access access) {
  const bool writes = access == Access::kReadWrite;
  database_ = std::make_unique<Database>(
      path, writes ? Database::Access::kReadWrite : Database::Access::kReadOnly, kBusyTimeoutMs);
  if (writes) {
    prepare_for_writing(*database_);
  } else {
    check_store(*database_);
  }
  statements_ = std::make_unique<Statements>(*database_);
}

RunStore::~RunStore() = default;

void RunStore::begin_step(int64_t step, int64_t started_at_ms) {
  const std::lock_guard lock(mutex_);
  (*statements_)("INSERT OR REPLACE INTO steps VALUES (?, ?, NULL, 'running')")
      .bind(step)
      .bind(started_at_ms)
      .run();
}

void RunStore::end_step(int64_t step, StepStatus status, int64_t ended_at_ms) {
  const std::lock_guard lock(mutex_);
  (*statements_)("UPDATE steps SET status = ?, ended_at_ms = ? WHERE step = ?")
      .bind(name_of(kStepStatus, status))
      .bind(ended_at_ms)
      .bind(step)
      .run();
  if (database_->num_changed_rows() == 0) {
    fail(ErrorCode::kFailedPrecondition, "step {} ended without having begun", step);
  }
}

std::vector<StepRecord> RunStore::steps(int64_t first_step) const {
  const std::lock_guard lock(mutex_);
  Statement& row = (*statements_)(
      "SELECT step, started_at_ms, ended_at_ms, status FROM steps WHERE step >= ? ORDER BY step");
  row.bind(first_step);
  std::vector<StepRecord> out;
  while (row.step()) out.push_back(read_step(row));
  return out;
}

std::optional<StepRecord> RunStore::last_step() const {
  const std::lock_guard lock(mutex_);
  Statement& row = (*statements_)(
      "SELECT step, started_at_ms, ended_at_ms, status FROM steps ORDER BY step DESC LIMIT 1");
  std::optional<StepRecord> out;
  while (row.step()) out = read_step(row);
  return out;
}

void RunStore::record_metrics(int64_t step, std::span<const Metric> metrics) {
  const std::lock_guard lock(mutex_);
  Transaction transaction(*database_);
  for (const Metric& metric : metrics) {
    (*statements_)("INSERT OR REPLACE INTO metrics (name, step, value) VALUES (?, ?, ?)")
        .bind(metric.name)
        .bind(step)
        .bind(metric.value)
        .run();
  }
  transaction.commit();
}

std::vector<std::string> RunStore::metric_names() const {
  const std::lock_guard lock(mutex_);
  Statement& row = (*statements_)("SELECT DISTINCT name FROM metrics ORDER BY name");
  std::vector<std::string> out;
  while (row.step()) out.push_back(row.column_text(0));
  return out;
}

std::vector<MetricPoint> RunStore::metric_series(std::string_view name, int64_t first_step) const {
  const std::lock_guard lock(mutex_);
  Statement& row =
      (*statements_)("SELECT step, value FROM metrics WHERE name = ? AND step >= ? ORDER BY step");
  row.bind(name).bind(first_step);
  std::vector<MetricPoint> out;
  while (row.step()) out.push_back({.step = row.column_int(0), .value = row.column_double(1)});
  return out;
}

void RunStore::record_samples(std::span<const SampleRecord> samples) {
  const std::lock_guard lock(mutex_);
  Transaction transaction(*database_);
  for (const SampleRecord& sample : samples) {
    (*statements_)("INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(sample.step)
        .bind(sample.prompt_id)
        .bind(sample.sample_index)
        .bind(sample.reward)
        .bind(sample.length)
        .bind(sample.finish_reason)
        .bind(sample.weight_version)
        .bind(cut_text(sample.prompt_text))
        .bind(cut_text(sample.response_text))
        .run();
  }
  transaction.commit();
}

std::vector<SampleRecord> RunStore::samples(int64_t step, int64_t limit) const {
  const std::lock_guard lock(mutex_);
  Statement& row = (*statements_)(
      "SELECT prompt_id, sample_index, reward, length, finish_reason, weight_version, prompt_text, "
      "response_text FROM samples WHERE step = ? ORDER BY prompt_id, sample_index LIMIT ?");
  row.bind(step).bind(limit);
  std::vector<SampleRecord> out;
  while (row.step()) {
    out.push_back({.step = step,
                   .prompt_id = row.column_text(0),
                   .sample_index = row.column_int(1),
                   .reward = row.column_double(2),
                   .length = row.column_int(3),
                   .finish_reason = row.column_text(4),
                   .weight_version = row.column_int(5),
                   .prompt_text = row.column_text(6),
                   .response_text = row.column_text(7)});
  }
  return out;
}

int64_t RunStore::drop_sample_texts(int64_t first_kept_step) {
  const std::lock_guard lock(mutex_);
  (*statements_)(
      "UPDATE samples SET prompt_text = NULL, response_text = NULL "
      "WHERE step < ? AND response_text IS NOT NULL")
      .bind(first_kept_step)
      .run();
  return database_->num_changed_rows();
}

void RunStore::rewind_to(int64_t step) {
  const std::lock_guard lock(mutex_);
  Transaction transaction(*database_);
  for (const char* sql : {"DELETE FROM steps WHERE step > ?", "DELETE FROM metrics WHERE step > ?",
                          "DELETE FROM samples WHERE step > ?"}) {
    (*statements_)(sql).bind(step).run();
  }
  transaction.commit();
}

void RunStore::record_version(const VersionRecord& record) {
  const std::lock_guard lock(mutex_);
  Transaction transaction(*database_);
  Statement& state = (*statements_)(
      "SELECT ifnull(max(version), 0), ifnull(sum(version = ?1), 0), "
      "ifnull(sum(version = ?1 AND decision <> 'prepared'), 0) FROM versions");
  state.bind(record.version);
  int64_t newest = 0;
  bool is_prepared = false;
  bool is_decided = false;
  while (state.step()) {
    newest = state.column_int(0);
    is_prepared = state.column_int(1) > 0;
    is_decided = state.column_int(2) > 0;
  }
  const std::string_view decision = name_of(kDecision, record.decision);
  if (is_decided) {
    fail(ErrorCode::kFailedPrecondition, "version {} is already decided; it cannot be {} now",
         record.version, decision);
  }
  if (!is_prepared && record.decision == Decision::kCommitted) {
    fail(ErrorCode::kFailedPrecondition, "version {} was not prepared; it cannot be committed",
         record.version);
  }
  if (is_prepared ? record.decision == Decision::kPrepared : record.version <= newest) {
    fail(ErrorCode::kFailedPrecondition, "version {} is not above the newest one, {}",
         record.version, newest);
  }
  (*statements_)(
      "INSERT INTO versions (version, epoch, step, decision, members, digest, created_at_ms) "
      "VALUES (?, ?, ?, ?, ?, ?, ?)")
      .bind(record.version)
      .bind(record.epoch)
      .bind(record.step)
      .bind(decision)
      .bind(members_to_json(record.members))
      .bind(record.digest)
      .bind(record.created_at_ms)
      .run();
  transaction.commit();
}

std::vector<VersionRecord> RunStore::read_versions(std::string_view filter,
                                                   int64_t parameter) const {
  const std::lock_guard lock(mutex_);
  Statement& row = (*statements_)(
      fmt::format("SELECT version, epoch, step, decision, members, digest, created_at_ms "
                  "FROM versions AS v {}",
                  filter));
  row.bind(parameter);
  std::vector<VersionRecord> out;
  while (row.step()) {
    out.push_back({.version = row.column_int(0),
                   .epoch = row.column_int(1),
                   .step = row.column_int(2),
                   .decision = value_of<Decision>(kDecision, row.column_text(3)),
                   .members = members_from_json(row.column_text(4)),
                   .digest = row.column_text(5),
                   .created_at_ms = row.column_int(6)});
  }
  return out;
}

std::vector<VersionRecord> RunStore::versions(int64_t first_version) const {
  return read_versions("WHERE version >= ? ORDER BY seq", first_version);
}

std::optional<VersionRecord> RunStore::last_committed_version() const {
  auto found = read_versions("WHERE decision = 'committed' ORDER BY version DESC LIMIT ?", 1);
  if (found.empty()) return std::nullopt;
  return std::move(found.front());
}

std::vector<VersionRecord> RunStore::undecided_versions() const {
  return read_versions(
      "WHERE version >= ? AND decision = 'prepared' AND NOT EXISTS (SELECT 1 FROM versions AS d "
      "WHERE d.version = v.version AND d.decision <> 'prepared') ORDER BY seq",
      0);
}

void RunStore::record_event(const EventRecord& event) {
  const std::lock_guard lock(mutex_);
  (*statements_)(
      "INSERT INTO events (time_ms, severity, source, kind, message) VALUES (?, ?, ?, ?, ?)")
      .bind(event.time_ms)
      .bind(name_of(kSeverity, event.severity))
      .bind(event.source)
      .bind(event.kind)
      .bind(event.message)
      .run();
}

std::vector<EventRecord> RunStore::events(int64_t limit, Severity min_severity) const {
  const std::lock_guard lock(mutex_);
  Statement& row = (*statements_)(
      "SELECT time_ms, severity, source, kind, message FROM events WHERE "
      "CASE severity WHEN 'info' THEN 0 WHEN 'warning' THEN 1 ELSE 2 END >= ? "
      "ORDER BY id DESC LIMIT ?");
  row.bind(static_cast<int>(min_severity)).bind(limit);
  std::vector<EventRecord> out;
  while (row.step()) {
    out.push_back({.time_ms = row.column_int(0),
                   .severity = value_of<Severity>(kSeverity, row.column_text(1)),
                   .source = row.column_text(2),
                   .kind = row.column_text(3),
                   .message = row.column_text(4)});
  }
  return out;
}

void RunStore::set_meta(std::string_view key, std::string_view value) {
  const std::lock_guard lock(mutex_);
  (*statements_)("INSERT OR REPLACE INTO meta VALUES (?, ?)").bind(key).bind(value).run();
}

std::optional<std::string> RunStore::meta(std::string_view key) const {
  const std::lock_guard lock(mutex_);
  Statement& row = (*statements_)("SELECT value FROM meta WHERE key = ?");
  row.bind(key);
  std::optional<std::string> out;
  while (row.step()) out = row.column_text(0);
  return out;
}

}  // namespace nibble
