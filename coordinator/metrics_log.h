#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/store/run_store.h"

namespace nibble {

/// One row of figures in the order they are written.
class MetricsRow {
 public:
  explicit MetricsRow(int64_t step) : step_(step) {}
  void set(const std::string& name, double value) { values_.emplace_back(name, value); }
  int64_t step() const { return step_; }
  const std::vector<std::pair<std::string, double>>& values() const { return values_; }
  /// 0 if there is none.
  double get(const std::string& name) const;

 private:
  int64_t step_;
  std::vector<std::pair<std::string, double>> values_;
};

/// metrics.jsonl of a run, one line a row, and the same figures in the run store. One thread.
class MetricsLog {
 public:
  /// Keeps rows up to `last_step` of an existing file, for a run that resumes there; -1: none.
  MetricsLog(const std::filesystem::path& file, RunStore& store, int64_t last_step);
  void write(const MetricsRow& row);

 private:
  const std::filesystem::path file_;
  RunStore& store_;
};

}  // namespace nibble
