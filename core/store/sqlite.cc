#include "core/store/sqlite.h"

#include <sqlite3.h>

#include <limits>

#include "core/base/fail.h"

namespace nibble {
namespace {

ErrorCode code_of(int result) {
  switch (result & 0xff) {  // the low byte is the primary code
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return ErrorCode::kDataLoss;
    case SQLITE_FULL:
    case SQLITE_NOMEM:
      return ErrorCode::kResourceExhausted;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return ErrorCode::kUnavailable;
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return ErrorCode::kInvalidArgument;
    default:
      return ErrorCode::kInternal;
  }
}

std::string_view advice_for(ErrorCode code) {
  switch (code) {
    case ErrorCode::kDataLoss:
      return "; the file is damaged or no run store: restore it from a copy or move it away";
    case ErrorCode::kResourceExhausted:
      return "; free space there";
    case ErrorCode::kUnavailable:
      return "; another process holds its lock";
    case ErrorCode::kInvalidArgument:
      return "; check the path and its permissions";
    default:
      return "";
  }
}

}  // namespace

void Database::Closer::operator()(sqlite3* handle) const noexcept { sqlite3_close_v2(handle); }

Database::Database(std::filesystem::path path, Access access, int busy_timeout_ms)
    : path_(std::move(path)) {
  const int flags = access == Access::kReadOnly ? SQLITE_OPEN_READONLY
                                                : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
  sqlite3* handle = nullptr;
  // NOMUTEX: the owner already lets in one thread at a time.
  const int result = sqlite3_open_v2(path_.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX, nullptr);
  handle_.reset(handle);
  if (result != SQLITE_OK) fail_with(result, "open");
  sqlite3_extended_result_codes(handle, 1);
  sqlite3_busy_timeout(handle, busy_timeout_ms);
  sqlite3_db_config(handle, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(handle, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
}

Database::~Database() = default;

void Database::fail_with(int result, std::string_view doing) const {
  const ErrorCode code = code_of(result);
  const char* reason = handle_ ? sqlite3_errmsg(handle_.get()) : sqlite3_errstr(result);
  fail(code, "cannot {} run store '{}': {}{}", doing, path_.string(), reason, advice_for(code));
}

void Database::execute(const std::string& sql) {
  const int result = sqlite3_exec(handle_.get(), sql.c_str(), nullptr, nullptr, nullptr);
  if (result != SQLITE_OK) fail_with(result, "write");
}

int64_t Database::query_int(const std::string& sql) {
  Statement statement(*this, sql);
  return statement.step() ? statement.column_int(0) : 0;
}

std::string Database::query_text(const std::string& sql) {
  Statement statement(*this, sql);
  return statement.step() ? statement.column_text(0) : "";
}

int64_t Database::num_changed_rows() const { return sqlite3_changes64(handle_.get()); }

void Statement::Finalizer::operator()(sqlite3_stmt* statement) const noexcept {
  sqlite3_finalize(statement);
}

Statement::Statement(Database& database, std::string_view sql) : database_(database) {
  sqlite3_stmt* statement = nullptr;
  const int result = sqlite3_prepare_v3(database.handle(), sql.data(), static_cast<int>(sql.size()),
                                        SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  statement_.reset(statement);
  if (result != SQLITE_OK) database_.fail_with(result, "read");
}

void Statement::check_bind(int result) {
  NIBBLE_CHECK(result != SQLITE_RANGE && result != SQLITE_MISUSE, "too many parameters for: {}",
               sqlite3_sql(statement_.get()));
  if (result != SQLITE_OK) database_.fail_with(result, "write");
}

Statement& Statement::bind(int64_t value) {
  check_bind(sqlite3_bind_int64(statement_.get(), next_parameter_++, value));
  return *this;
}

Statement& Statement::bind(double value) {
  check_bind(sqlite3_bind_double(statement_.get(), next_parameter_++, value));
  return *this;
}

Statement& Statement::bind(std::string_view value) {
  // A null pointer would bind NULL, so an empty view gets an address.
  const char* data = value.empty() ? "" : value.data();
  check_bind(sqlite3_bind_text64(statement_.get(), next_parameter_++, data, value.size(),
                                 SQLITE_TRANSIENT, SQLITE_UTF8));
  return *this;
}

Statement& Statement::bind(const std::optional<int64_t>& value) {
  if (value.has_value()) return bind(*value);
  check_bind(sqlite3_bind_null(statement_.get(), next_parameter_++));
  return *this;
}

bool Statement::step() {
  const int result = sqlite3_step(statement_.get());
  if (result == SQLITE_ROW) return true;
  reset();
  if (result != SQLITE_DONE) {
    const bool reads = sqlite3_stmt_readonly(statement_.get()) != 0;
    database_.fail_with(result, reads ? "read" : "write");
  }
  return false;
}

void Statement::reset() {
  sqlite3_reset(statement_.get());
  next_parameter_ = 1;
}

void Statement::run() {
  while (step()) {
  }
}

int64_t Statement::column_int(int column) const {
  return sqlite3_column_int64(statement_.get(), column);
}

double Statement::column_double(int column) const {
  if (sqlite3_column_type(statement_.get(), column) == SQLITE_NULL) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return sqlite3_column_double(statement_.get(), column);
}

std::string Statement::column_text(int column) const {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column));
  if (text == nullptr) return "";
  return {text, static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column))};
}

std::optional<int64_t> Statement::column_optional_int(int column) const {
  if (sqlite3_column_type(statement_.get(), column) == SQLITE_NULL) return std::nullopt;
  return column_int(column);
}

Transaction::Transaction(Database& database) : database_(database) {
  database_.execute("BEGIN IMMEDIATE");
}

Transaction::~Transaction() {
  if (!is_open_) return;
  // Cannot fail in a way that matters: without COMMIT the rows are gone with the connection too.
  sqlite3_exec(database_.handle(), "ROLLBACK", nullptr, nullptr, nullptr);
}

void Transaction::commit() {
  database_.execute("COMMIT");
  is_open_ = false;
}

}  // namespace nibble
