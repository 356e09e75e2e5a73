#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct sqlite3;
struct sqlite3_stmt;

namespace nibble {

/// Owns one SQLite connection. One thread at a time. Every failure throws an Error that names the
/// file: kDataLoss for a corrupt file, kResourceExhausted for a full disk, kUnavailable when
/// another process holds the lock past `busy_timeout_ms`, kInvalidArgument when it cannot be opened
/// or written, kInternal otherwise.
class Database {
 public:
  enum class Access { kReadWrite, kReadOnly };
  Database(std::filesystem::path path, Access access, int busy_timeout_ms);
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;
  ~Database();

  /// Runs statements that return nothing of interest.
  void execute(const std::string& sql);
  /// The first column of the first row of a query.
  int64_t query_int(const std::string& sql);
  std::string query_text(const std::string& sql);
  int64_t num_changed_rows() const;

  const std::filesystem::path& path() const { return path_; }
  sqlite3* handle() const { return handle_.get(); }
  /// Throws the Error for a result code of this connection; `doing` as in "cannot {doing}
  /// '{path}'".
  [[noreturn]] void fail_with(int result, std::string_view doing) const;

 private:
  struct Closer {
    void operator()(sqlite3* handle) const noexcept;
  };
  std::filesystem::path path_;
  std::unique_ptr<sqlite3, Closer> handle_;
};

/// A prepared statement, compiled once and used many times: bind() in order, then step() or run().
/// Parameters never become part of the SQL. Must not outlive its database.
class Statement {
 public:
  Statement(Database& database, std::string_view sql);

  /// Binds the next `?`.
  Statement& bind(int64_t value);
  Statement& bind(int value) { return bind(int64_t{value}); }
  Statement& bind(double value);
  Statement& bind(std::string_view value);
  Statement& bind(const char* value) = delete;  // or it would bind as a bool elsewhere
  Statement& bind(const std::optional<int64_t>& value);

  /// Moves to the next row; false when there is none, and then the statement can be bound anew.
  bool step();
  /// step() for a statement without rows.
  void run();

  /// Drops a half-read result, so that the statement can be bound anew.
  void reset();

  /// Columns of the current row, from 0. NULL reads as 0, NaN, "" and nullopt.
  int64_t column_int(int column) const;
  double column_double(int column) const;
  std::string column_text(int column) const;
  std::optional<int64_t> column_optional_int(int column) const;

 private:
  struct Finalizer {
    void operator()(sqlite3_stmt* statement) const noexcept;
  };
  void check_bind(int result);
  Database& database_;
  std::unique_ptr<sqlite3_stmt, Finalizer> statement_;
  int next_parameter_ = 1;
};

/// A write transaction; rolls back unless commit() returned.
class Transaction {
 public:
  explicit Transaction(Database& database);
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  ~Transaction();
  /// Durable when it returns.
  void commit();

 private:
  Database& database_;
  bool is_open_ = true;
};

}  // namespace nibble
