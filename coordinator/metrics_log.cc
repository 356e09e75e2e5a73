#include "coordinator/metrics_log.h"

#include <cmath>
#include <fstream>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"

namespace nibble {

double MetricsRow::get(const std::string& name) const {
  for (const auto& [key, value] : values_) {
    if (key == name) return value;
  }
  return 0.0;
}

MetricsLog::MetricsLog(const std::filesystem::path& file, RunStore& store, int64_t last_step)
    : file_(file), store_(store) {
  std::string kept;
  std::ifstream in(file_);
  for (std::string line; last_step >= 0 && std::getline(in, line);) {
    // A torn last line of a killed run is dropped like any row past the checkpoint.
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (row.is_object() && row.value("step", last_step + 1) <= last_step) kept += line + "\n";
  }
  write_file_atomically(file_, kept);
}

void MetricsLog::write(const MetricsRow& row) {
  OrderedJson line = {{"step", row.step()}};
  std::vector<Metric> metrics;
  for (const auto& [name, value] : row.values()) {
    if (std::isfinite(value) && value == std::floor(value) && std::fabs(value) < 1e15) {
      line[name] = static_cast<int64_t>(value);
    } else {
      line[name] = value;
    }
    metrics.push_back({name, value});
  }
  std::ofstream out(file_, std::ios::app);
  out << line.dump() << "\n";
  out.flush();
  if (!out) {
    fail(ErrorCode::kResourceExhausted, "cannot write '{}'; is the disk full?", file_.string());
  }
  store_.record_metrics(row.step(), metrics);
}

}  // namespace nibble
