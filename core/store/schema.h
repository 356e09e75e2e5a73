#pragma once

#include "core/store/sqlite.h"

namespace nibble {

/// The schema this build writes. It only grows; see the list of migrations in schema.cc.
int newest_store_schema();

/// Makes an empty file a run store, or brings an older one up to newest_store_schema() in one
/// transaction. Throws Error{kFailedPrecondition} for a newer schema, Error{kInvalidArgument} for
/// a SQLite file of another program.
void migrate_store(Database& database);

/// Refuses what migrate_store refuses, and an older schema with kFailedPrecondition; writes
/// nothing.
void check_store(Database& database);

}  // namespace nibble
