#include "core/data/parquet_file.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <utility>

#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

constexpr int kTimeoutMs = 600'000;
// The program takes a request as a whole before it answers, so neither side waits for the other.
constexpr size_t kRowsPerRequest = 4096;
constexpr ProcessLimits kLimits = {.max_memory_bytes = 4LL << 30, .max_cpu_seconds = 0};

int64_t open_and_count(const std::filesystem::path& path, ParquetProcess& process) {
  if (!std::ifstream(path) || std::filesystem::is_directory(path)) {
    fail(ErrorCode::kNotFound, "cannot open data file '{}'", path.string());
  }
  return process.read(path, {}, [](size_t, const std::string&) {});
}

}  // namespace

ParquetProcess::ParquetProcess(std::filesystem::path program, std::vector<std::string> columns)
    : program_(std::move(program)),
      columns_(std::move(columns)),
      lines_(std::max(kMaxRecordBytes, size_t{1} << 16)) {}

int64_t ParquetProcess::read(const std::filesystem::path& file, std::span<const int64_t> rows,
                             const std::function<void(size_t place, std::string json)>& body) {
  if (!is_idle_) restart();
  is_idle_ = false;  // what an error leaves unsaid belongs to no other request
  file_ = file;
  int64_t num_rows = 0;
  size_t begin = 0;
  do {
    const auto part = rows.subspan(begin, std::min(kRowsPerRequest, rows.size() - begin));
    num_rows =
        exchange(part, [&](size_t i, std::string json) { body(begin + i, std::move(json)); });
    begin += part.size();
  } while (begin < rows.size());
  is_idle_ = true;
  return num_rows;
}

void ParquetProcess::restart() {
  lines_.clear();
  process_.emplace(std::vector<std::string>{program_.string()}, kLimits);
}

int64_t ParquetProcess::exchange(std::span<const int64_t> rows,
                                 const std::function<void(size_t place, std::string json)>& body) {
  const Json request = {{"file", std::filesystem::absolute(file_).string()},
                        {"columns", columns_},
                        {"rows", std::vector<int64_t>(rows.begin(), rows.end())}};
  // A file name that is not UTF-8 is no JSON.
  send(request.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  const std::string count = receive_line();
  int64_t num_rows = -1;
  std::from_chars(count.data(), count.data() + count.size(), num_rows);
  if (num_rows < 0) {
    fail(ErrorCode::kInternal, "'{}' said '{}' in place of a number of rows", program_.string(),
         count.substr(0, 100));
  }
  for (size_t i = 0; i < rows.size(); ++i) body(i, receive_line());
  return num_rows;
}

void ParquetProcess::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(process_->fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {
      wait(POLLOUT);
      continue;
    }
    if (count < 0) fail_ended();
    bytes.remove_prefix(static_cast<size_t>(count));
  }
}

std::string ParquetProcess::receive_line() {
  while (true) {
    if (auto line = lines_.next_line()) {
      if (!line->starts_with('!')) return *std::move(line);
      is_idle_ = true;  // this line closes an answer
      fail(ErrorCode::kInvalidArgument, "{}: {}", file_.string(), line->substr(1));
    }
    char buffer[1 << 16];
    const ssize_t count = ::recv(process_->fd(), buffer, sizeof buffer, 0);
    if (count > 0) {
      lines_.append({buffer, static_cast<size_t>(count)});
    } else if (count < 0 && errno == EAGAIN) {
      wait(POLLIN);
    } else if (count == 0 || errno != EINTR) {
      fail_ended();
    }
  }
}

void ParquetProcess::wait(short events) {
  pollfd poll_fd{process_->fd(), events, 0};
  if (::poll(&poll_fd, 1, kTimeoutMs) != 0) return;
  fail(ErrorCode::kDeadlineExceeded, "{}: a row took more than {} s to read", file_.string(),
       kTimeoutMs / 1000);
}

void ParquetProcess::fail_ended() {
  const std::string end = process_->stop();
  if (end.starts_with("exit code 127")) {
    fail(ErrorCode::kFailedPrecondition,
         "'{}', which reads Parquet, cannot be executed; it belongs beside nibble, with libarrow "
         "and libparquet; JSON lines need none of them",
         program_.string());
  }
  fail(ErrorCode::kInvalidArgument,
       "{}: reading it as Parquet ended with {}: it is damaged, or a "
       "row group needs more than {} MiB of memory",
       file_.string(), end, kLimits.max_memory_bytes >> 20);
}

ParquetFile::ParquetFile(std::filesystem::path path, ParquetProcess& process)
    : path_(std::move(path)), process_(process), num_records_(open_and_count(path_, process)) {}

void ParquetFile::read(std::span<const int64_t> indices,
                       const std::function<void(size_t place, RecordText record)>& body) {
  process_.read(path_, indices, [&](size_t place, std::string json) {
    body(place,
         {fmt::format("{}: row {} (from 0)", path_.string(), indices[place]), std::move(json)});
  });
}

}  // namespace nibble
