#include "cli/metric_rows.h"

#include <cmath>
#include <limits>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"

namespace nibble {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 30;
constexpr size_t kMaxColumns = 10'000;

using Row = std::map<std::string, double>;

void flatten(const Json& object, const std::string& prefix, Row& row) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      flatten(value, prefix + key + "/", row);
    } else if (value.is_number()) {
      row[prefix + key] = value.get<double>();
    }
  }
}

}  // namespace

MetricTable read_metric_rows(const std::filesystem::path& path) {
  const std::string text = read_file(path, kMaxBytes);
  std::map<int64_t, Row> rows;
  size_t begin = 0;
  for (int64_t line = 1;; ++line) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string_view content = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", path.string(), line);
    const Json object = parse_json(content, where);
    if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer()) {
      fail(ErrorCode::kInvalidArgument, "{}: want an object with an integer 'step'", where);
    }
    Row row;
    flatten(object, "", row);
    row.erase("step");
    Row& whole = rows[object["step"].get<int64_t>()];
    for (const auto& [name, value] : row) whole[name] = value;
  }
  if (rows.empty()) fail(ErrorCode::kInvalidArgument, "'{}' has no rows yet", path.string());
  MetricTable table;
  for (const auto& [step, row] : rows) {
    for (const auto& [name, value] : row) {
      auto& column = table.columns[name];
      if (table.columns.size() > kMaxColumns) {
        fail(ErrorCode::kInvalidArgument, "'{}' has more than {} metrics", path.string(),
             kMaxColumns);
      }
      column.resize(table.step.size(), std::numeric_limits<double>::quiet_NaN());
      column.push_back(value);
    }
    table.step.push_back(static_cast<double>(step));
  }
  for (auto& [name, column] : table.columns) {
    column.resize(table.step.size(), std::numeric_limits<double>::quiet_NaN());
  }
  return table;
}

MetricTable read_run_metrics(const std::filesystem::path& run) {
  if (!std::filesystem::is_directory(run)) {
    fail(ErrorCode::kNotFound, "run directory '{}' does not exist", run.string());
  }
  if (!std::filesystem::exists(run / "metrics.jsonl")) {
    fail(ErrorCode::kNotFound, "'{}' has no metrics.jsonl; give the run.directory of a job",
         run.string());
  }
  return read_metric_rows(run / "metrics.jsonl");
}

}  // namespace nibble
