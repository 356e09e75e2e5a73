// A comparison of two runs as text and JSON, for `nibble status --baseline`.
#include <fmt/format.h>

#include <cmath>
#include <iterator>

#include "cli/status_report.h"

namespace nibble {
namespace {

// Bytes and counts in full.
std::string figure(double value) {
  const bool is_whole = value == std::floor(value) && std::fabs(value) < 1e15;
  return is_whole ? fmt::format("{:.0f}", value) : fmt::format("{:.6g}", value);
}

std::string difference(double run, double baseline) {
  return fmt::format("{}{}", run > baseline ? "+" : "", figure(run - baseline));
}

}  // namespace

OrderedJson comparison_json(const RunComparison& comparison) {
  OrderedJson metrics = OrderedJson::object();
  const auto sides = [](double run, double baseline) {
    return OrderedJson{{"run", run}, {"baseline", baseline}, {"difference", run - baseline}};
  };
  for (const ComparedMetric& metric : comparison.metrics) {
    metrics[metric.name] = {{"first_step", metric.first_step},
                            {"last_step", metric.last_step},
                            {"common_steps", metric.common_steps},
                            {"last", sides(metric.last, metric.baseline_last)},
                            {"tail_steps", metric.tail_steps},
                            {"tail_mean", sides(metric.mean, metric.baseline_mean)}};
  }
  return {{"run", comparison.baseline.string()}, {"metrics", metrics}};
}

std::string comparison_text(const RunComparison& comparison) {
  std::string text = fmt::format("beside {}: ", comparison.baseline.string());
  if (comparison.metrics.empty()) return text + "no figure of a step that both have\n";
  text += "values of the last step that both have, means of the last steps that both have\n";
  const auto out = std::back_inserter(text);
  fmt::format_to(out, "  {:<22} {:>9} {:>12} {:>12} {:>12}  {:>6} {:>12} {:>12} {:>12}\n", "",
                 "last step", "run", "baseline", "difference", "steps", "mean of run", "baseline",
                 "difference");
  for (const ComparedMetric& metric : comparison.metrics) {
    fmt::format_to(out, "  {:<22} {:>9} {:>12} {:>12} {:>12}  {:>6} {:>12} {:>12} {:>12}\n",
                   metric.name, metric.last_step, figure(metric.last), figure(metric.baseline_last),
                   difference(metric.last, metric.baseline_last), metric.tail_steps,
                   figure(metric.mean), figure(metric.baseline_mean),
                   difference(metric.mean, metric.baseline_mean));
  }
  return text;
}

}  // namespace nibble
