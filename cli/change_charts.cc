#include "cli/change_charts.h"

#include <fmt/format.h>

#include <cmath>

namespace nibble {
namespace {

constexpr const char* kShares[] = {"codes_changed_share", "scales_changed_share",
                                   "bytes_changed_share"};
constexpr const char* kPowerOfTen = "log10 of the share";

// Which curves a chart of `runs` has: (run, column).
std::vector<std::pair<const LabelledRun*, std::string>> curves_of(
    std::span<const LabelledRun> runs) {
  std::vector<std::pair<const LabelledRun*, std::string>> curves;
  for (const LabelledRun& run : runs) {
    for (const char* column : kShares) {
      if (!run.table.columns.contains(column)) continue;
      curves.emplace_back(&run, column);
      if (runs.size() > 1) break;
    }
  }
  return curves;
}

std::string label_of(const LabelledRun& run, const std::string& column, size_t num_runs) {
  return num_runs > 1 ? fmt::format("{}: {}", run.label, column) : column;
}

// The mean of the finite values; NaN if there are none.
double mean_of(const std::vector<double>& values) {
  double sum = 0.0, count = 0.0;
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    sum += value;
    count += 1.0;
  }
  return sum / count;
}

// No share has no logarithm: nothing is drawn.
void add_point(ChartSeries& series, double x, double share) {
  if (!(share > 0.0)) return;
  series.x.push_back(x);
  series.y.push_back(std::log10(share));
}

void add_series(Chart& chart, ChartSeries series) {
  if (!series.x.empty()) chart.series.push_back(std::move(series));
}

}  // namespace

Chart changes_by_step(std::span<const LabelledRun> runs) {
  Chart chart{"What a step changes", "step", kPowerOfTen, Chart::Kind::kLines, {}};
  for (const auto& [run, column] : curves_of(runs)) {
    ChartSeries series{label_of(*run, column, runs.size()), {}, {}};
    const std::vector<double>& values = run->table.columns.at(column);
    for (size_t i = 0; i < values.size(); ++i) add_point(series, run->table.step[i], values[i]);
    add_series(chart, std::move(series));
  }
  return chart;
}

Chart changes_by_layer(std::span<const LabelledRun> runs) {
  Chart chart{"What a step changes, by layer", "layer", kPowerOfTen, Chart::Kind::kLines, {}};
  for (const auto& [run, column] : curves_of(runs)) {
    ChartSeries series{label_of(*run, column, runs.size()), {}, {}};
    for (int layer = 0;; ++layer) {
      const auto found = run->table.columns.find(fmt::format("{}_layer_{:02}", column, layer));
      if (found == run->table.columns.end()) break;
      add_point(series, layer, mean_of(found->second));
    }
    add_series(chart, std::move(series));
  }
  return chart;
}

}  // namespace nibble
