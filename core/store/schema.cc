#include "core/store/schema.h"

#include <array>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int kApplicationId = 0x4e49424c;  // "NIBL", in the header of the file

// Entry i brings schema i to i + 1. Never change one that was released; append.
constexpr std::array<const char*, 1> kMigrations = {R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE steps (
  step INTEGER PRIMARY KEY,
  started_at_ms INTEGER NOT NULL,
  ended_at_ms INTEGER,
  status TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed'))
) STRICT;
CREATE TABLE metrics (
  name TEXT NOT NULL,
  step INTEGER NOT NULL,
  value REAL,
  PRIMARY KEY (name, step)
) STRICT, WITHOUT ROWID;
CREATE TABLE samples (
  step INTEGER NOT NULL,
  prompt_id TEXT NOT NULL,
  sample_index INTEGER NOT NULL,
  reward REAL,
  length INTEGER NOT NULL,
  finish_reason TEXT NOT NULL,
  weight_version INTEGER NOT NULL,
  prompt_text TEXT,
  response_text TEXT,
  PRIMARY KEY (step, prompt_id, sample_index)
) STRICT;
CREATE INDEX samples_with_text ON samples (step) WHERE response_text IS NOT NULL;
CREATE TABLE versions (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  version INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  step INTEGER NOT NULL,
  decision TEXT NOT NULL CHECK (decision IN ('prepared', 'committed', 'aborted')),
  members TEXT NOT NULL,  -- JSON list of names
  digest TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX versions_prepared ON versions (version) WHERE decision = 'prepared';
CREATE UNIQUE INDEX versions_decided ON versions (version) WHERE decision <> 'prepared';
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  time_ms INTEGER NOT NULL,
  severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
  source TEXT NOT NULL,
  kind TEXT NOT NULL,
  message TEXT NOT NULL
) STRICT;
)sql"};

/// The file's schema version; 0 for an empty file. Refuses foreign and newer files.
int64_t known_schema(Database& database) {
  const int64_t application = database.query_int("PRAGMA application_id");
  const int64_t schema = database.query_int("PRAGMA user_version");
  const int64_t num_tables = database.query_int("SELECT count(*) FROM sqlite_schema");
  if (application != kApplicationId && (application != 0 || schema != 0 || num_tables != 0)) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' is a SQLite file of another program, not a run store; give another path",
         database.path().string());
  }
  if (schema > newest_store_schema()) {
    fail(ErrorCode::kFailedPrecondition,
         "run store '{}' has schema {}, this build knows up to {}; use the newer build that wrote "
         "it",
         database.path().string(), schema, newest_store_schema());
  }
  return schema;
}

}  // namespace

int newest_store_schema() { return static_cast<int>(kMigrations.size()); }

void migrate_store(Database& database) {
  if (known_schema(database) == newest_store_schema()) return;
  Transaction transaction(database);
  // Asked again under the lock: another process may have migrated meanwhile.
  for (int64_t schema = known_schema(database); schema < newest_store_schema(); ++schema) {
    database.execute(kMigrations.at(static_cast<size_t>(schema)));
  }
  database.execute(fmt::format("PRAGMA application_id = {}", kApplicationId));
  database.execute(fmt::format("PRAGMA user_version = {}", newest_store_schema()));
  transaction.commit();
}

void check_store(Database& database) {
  const int64_t schema = known_schema(database);
  if (schema == newest_store_schema()) return;
  fail(ErrorCode::kFailedPrecondition,
       "run store '{}' has schema {}, this build reads {}; open it once for writing to migrate it",
       database.path().string(), schema, newest_store_schema());
}

}  // namespace nibble
