#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cmath>
#include <memory>
#include <span>

#include "cli/chart.h"
#include "cli/command.h"
#include "cli/metric_rows.h"
#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxCurves = 8;  // as many as there are colours

struct PlotFlags {
  std::vector<fs::path> runs;
  fs::path output;
  std::vector<std::string> labels;
};

struct Run {
  std::string label;
  MetricTable table;
};

/// One of the charts of a run: which metrics belong to it, by the words of their names.
struct Topic {
  const char* file;
  const char* title;
  const char* y_label;
  std::vector<std::string> words;
};

const std::vector<Topic>& topics() {
  static const std::vector<Topic> all = {
      {"reward.png", "Reward", "reward", {"reward"}},
      {"kl.png", "KL divergence", "nats per token", {"kl"}},
      {"gap.png", "Gap between trainer and rollout", "|log p difference|", {"gap", "mismatch"}}};
  return all;
}

// "rollout/reward_mean" -> rollout, reward, mean.
std::vector<std::string> words_of(const std::string& name) {
  std::vector<std::string> words(1);
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      words.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  return words;
}

bool is_phase(const std::string& name) { return name.ends_with("_ms"); }

bool has_word(const std::string& name, std::span<const std::string> wanted) {
  const auto words = words_of(name);
  return std::any_of(words.begin(), words.end(), [&](const std::string& word) {
    return std::find(wanted.begin(), wanted.end(), word) != wanted.end();
  });
}

// Metrics of a topic, the plainest first: no extremes or spreads, then short names.
std::vector<std::string> metrics_of(const MetricTable& table, const Topic& topic) {
  static const std::vector<std::string> kSpreads = {"max", "min", "std"};
  std::vector<std::string> names;
  for (const auto& [name, column] : table.columns) {
    if (!is_phase(name) && has_word(name, topic.words)) names.push_back(name);
  }
  std::stable_sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return std::pair(has_word(a, kSpreads), a.size()) < std::pair(has_word(b, kSpreads), b.size());
  });
  return names;
}

Chart topic_chart(const Run& run, const Topic& topic) {
  Chart chart{topic.title, "step", topic.y_label, Chart::Kind::kLines, {}};
  auto names = metrics_of(run.table, topic);
  if (names.size() > kMaxCurves) names.resize(kMaxCurves);
  for (const std::string& name : names) {
    chart.series.push_back({name, run.table.step, run.table.columns.at(name)});
  }
  return chart;
}

double mean_of(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += std::isfinite(value) ? value : 0.0;
  return sum / static_cast<double>(values.size());
}

// Time of every phase, in seconds, stacked: the longest at the bottom, small ones added up.
Chart phase_chart(const Run& run) {
  Chart chart{"Time of a step by phase", "step", "seconds", Chart::Kind::kStackedAreas, {}};
  std::vector<std::string> names;
  for (const auto& [name, column] : run.table.columns) {
    // A total or the step's own time would count everything twice.
    const bool is_sum = has_word(name, std::vector<std::string>{"step", "total"});
    if (is_phase(name) && !is_sum) names.push_back(name);
  }
  std::stable_sort(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return mean_of(run.table.columns.at(a)) > mean_of(run.table.columns.at(b));
  });
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i];
    const bool is_rest = names.size() > kMaxCurves && i + 1 >= kMaxCurves;
    if (chart.series.size() < kMaxCurves) {
      chart.series.push_back({is_rest ? "other" : name.substr(0, name.size() - 3), run.table.step,
                              std::vector<double>(run.table.step.size(), 0.0)});
    }
    const std::vector<double>& column = run.table.columns.at(name);
    for (size_t s = 0; s < column.size(); ++s) {
      if (std::isfinite(column[s])) chart.series.back().y[s] += std::max(0.0, column[s]) / 1000.0;
    }
  }
  return chart;
}

// The same figure of several runs in one chart.
Chart overlay_chart(const std::vector<Run>& runs, const Topic& topic) {
  Chart chart{topic.title, "step", topic.y_label, Chart::Kind::kLines, {}};
  for (const Run& run : runs) {
    const auto names = metrics_of(run.table, topic);
    if (names.empty()) continue;
    chart.series.push_back({fmt::format("{}: {}", run.label, names.front()), run.table.step,
                            run.table.columns.at(names.front())});
  }
  return chart;
}

Chart overlay_time_chart(const std::vector<Run>& runs) {
  Chart chart{"Time of a step", "step", "seconds", Chart::Kind::kLines, {}};
  for (const Run& run : runs) {
    const Chart phases = phase_chart(run);
    if (phases.series.empty()) continue;
    std::vector<double> total(run.table.step.size(), 0.0);
    for (const ChartSeries& series : phases.series) {
      for (size_t i = 0; i < total.size(); ++i) total[i] += series.y[i];
    }
    chart.series.push_back({run.label, run.table.step, total});
  }
  return chart;
}

void plot_one(const Run& run, const fs::path& directory, const fs::path& summary) {
  std::vector<Chart> charts;
  std::vector<const char*> left_out;
  const auto add = [&](Chart chart, const char* file) {
    if (chart.series.empty()) {
      left_out.push_back(file);
      return;
    }
    fs::create_directories(directory);
    write_charts_png(directory / file, std::span(&chart, 1));
    charts.push_back(std::move(chart));
    fmt::print("{}\n", (directory / file).string());
  };
  for (const Topic& topic : topics()) add(topic_chart(run, topic), topic.file);
  add(phase_chart(run), "phases.png");
  if (charts.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "the rows of '{}' have no metric to plot: none is named after reward, kl or gap, none "
         "ends in _ms",
         run.label);
  }
  if (!left_out.empty()) {
    get_logger("plot")->warn("no metrics for {}", fmt::join(left_out, ", "));
  }
  write_charts_png(summary, charts);
  fmt::print("{}\n", summary.string());
}

void plot_overlay(const std::vector<Run>& runs, const fs::path& output) {
  std::vector<Chart> charts;
  for (const Topic& topic : topics()) charts.push_back(overlay_chart(runs, topic));
  charts.push_back(overlay_time_chart(runs));
  charts.erase(std::remove_if(charts.begin(), charts.end(),
                              [](const Chart& chart) { return chart.series.empty(); }),
               charts.end());
  if (charts.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "none of the runs has a metric named after reward, kl or gap");
  }
  write_charts_png(output, charts);
  fmt::print("{}\n", output.string());
}

std::string default_label(const fs::path& run) {
  const fs::path absolute = fs::absolute(run).lexically_normal();
  return (absolute.has_filename() ? absolute : absolute.parent_path()).filename().string();
}

void run_plot(const PlotFlags& flags) {
  if (!flags.labels.empty() && flags.labels.size() != flags.runs.size()) {
    fail(ErrorCode::kInvalidArgument, "--labels has {} names for {} runs", flags.labels.size(),
         flags.runs.size());
  }
  if (flags.runs.size() > kMaxCurves) {
    fail(ErrorCode::kInvalidArgument, "{} runs in one chart; at most {} can be told apart",
         flags.runs.size(), kMaxCurves);
  }
  if (flags.runs.size() > 1 && flags.output.empty()) {
    fail(ErrorCode::kInvalidArgument, "several runs need --output FILE.png");
  }
  std::vector<Run> runs;
  for (size_t i = 0; i < flags.runs.size(); ++i) {
    if (!fs::is_directory(flags.runs[i])) {
      fail(ErrorCode::kNotFound, "run directory '{}' does not exist", flags.runs[i].string());
    }
    runs.push_back({flags.labels.empty() ? default_label(flags.runs[i]) : flags.labels[i],
                    read_metric_rows(flags.runs[i] / "metrics.jsonl")});
  }
  if (runs.size() > 1) {
    plot_overlay(runs, flags.output);
    return;
  }
  const fs::path directory = flags.runs[0] / "plots";
  plot_one(runs[0], directory, flags.output.empty() ? directory / "summary.png" : flags.output);
}

}  // namespace

void add_plot_command(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("plot", "Draw a run's curves, or those of several runs in one picture");
  auto flags = std::make_shared<PlotFlags>();  // shared: parse and work are two callbacks
  command->add_option("runs", flags->runs, "run directories, each with a metrics.jsonl")
      ->required();
  command->add_option("--output", flags->output,
                      "PNG file; default: plots/summary.png in the (only) run");
  command->add_option("--labels", flags->labels, "names of the runs, e.g. bf16,int4")
      ->delimiter(',');
  command->footer(
      "One run: writes plots/reward.png, kl.png, gap.png, phases.png and summary.png into it.\n"
      "Example:\n  nibble plot runs/bf16 runs/int4 --labels bf16,int4 --output compare.png");
  command->callback([flags, &context] { context.run = [flags] { run_plot(*flags); }; });
}

}  // namespace nibble
