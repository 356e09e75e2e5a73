#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cmath>
#include <memory>
#include <span>

#include "cli/change_charts.h"
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

using Run = LabelledRun;

enum class RunKind { kRollout, kSupervised };

/// One of the charts of a run and the columns of metrics.jsonl it shows; in an overlay of several
/// runs the first of them that a run has. Charts belong to a kind of run, because the `loss` of a
/// policy and that of given tokens have nothing in common but the name.
struct Topic {
  RunKind kind;
  const char* file;
  const char* title;
  const char* y_label;
  std::vector<std::string> columns;
};

const std::vector<Topic>& topics() {
  static const std::vector<Topic> all = {
      {RunKind::kSupervised, "loss.png", "Loss", "nats per token", {"eval_loss", "loss"}},
      {RunKind::kSupervised, "grad_norm.png", "Gradient norm", "before clipping", {"grad_norm"}},
      {RunKind::kRollout, "reward.png", "Reward", "reward", {"eval_reward_mean", "reward_mean"}},
      {RunKind::kRollout, "kl.png", "KL to the BF16 reference", "nats per token", {"kl_reference"}},
      {RunKind::kRollout,
       "gap.png",
       "Gap between trainer and rollout",
       "|log p difference|",
       {"logprob_abs_diff_mean", "logprob_abs_diff_max"}}};
  return all;
}

// The parts of a step that follow one another and together make it up.
const std::vector<std::string>& phases() {
  static const std::vector<std::string> all = {
      "generate_ms",  "reward_ms", "reference_ms", "forward_backward_ms",
      "optimizer_ms", "pack_ms",   "sync_ms"};
  return all;
}

// Nothing is rewarded in a supervised run, and its loss is there from the first row on.
RunKind kind_of(const Run& run) {
  const auto& columns = run.table.columns;
  const bool rewarded = columns.contains("reward_mean") || columns.contains("eval_reward_mean");
  const bool has_loss = columns.contains("loss") || columns.contains("eval_loss");
  return has_loss && !rewarded ? RunKind::kSupervised : RunKind::kRollout;
}

// The finite points of a column: evaluations exist for some steps only.
ChartSeries series_of(const MetricTable& table, const std::string& column,
                      const std::string& label) {
  ChartSeries series{label, {}, {}};
  const std::vector<double>& values = table.columns.at(column);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) continue;
    series.x.push_back(table.step[i]);
    series.y.push_back(values[i]);
  }
  return series;
}

Chart topic_chart(const Run& run, const Topic& topic) {
  Chart chart{topic.title, "step", topic.y_label, Chart::Kind::kLines, {}};
  for (const std::string& column : topic.columns) {
    if (run.table.columns.contains(column)) {
      chart.series.push_back(series_of(run.table, column, column));
    }
  }
  return chart;
}

// Seconds of every phase, stacked. Steps without phases (an evaluation before training) are left
// out.
Chart phase_chart(const Run& run) {
  Chart chart{"Time of a step by phase", "step", "seconds", Chart::Kind::kStackedAreas, {}};
  for (const std::string& name : phases()) {
    if (!run.table.columns.contains(name)) continue;
    ChartSeries series = series_of(run.table, name, name.substr(0, name.size() - 3));
    for (double& value : series.y) value = std::max(0.0, value) / 1000.0;
    chart.series.push_back(std::move(series));
  }
  return chart;
}

// The same figure of several runs in one chart.
Chart overlay_chart(const std::vector<Run>& runs, const Topic& topic) {
  Chart chart{topic.title, "step", topic.y_label, Chart::Kind::kLines, {}};
  for (const Run& run : runs) {
    if (kind_of(run) != topic.kind) continue;
    const auto found =
        std::find_if(topic.columns.begin(), topic.columns.end(),
                     [&](const std::string& name) { return run.table.columns.contains(name); });
    if (found == topic.columns.end()) continue;
    chart.series.push_back(series_of(run.table, *found, fmt::format("{}: {}", run.label, *found)));
  }
  return chart;
}

Chart overlay_time_chart(const std::vector<Run>& runs) {
  Chart chart{"Time of a step", "step", "seconds", Chart::Kind::kLines, {}};
  for (const Run& run : runs) {
    if (!run.table.columns.contains("step_ms")) continue;
    ChartSeries series = series_of(run.table, "step_ms", run.label);
    for (double& value : series.y) value /= 1000.0;
    chart.series.push_back(std::move(series));
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
  for (const Topic& topic : topics()) {
    if (topic.kind == kind_of(run)) add(topic_chart(run, topic), topic.file);
  }
  add(phase_chart(run), "phases.png");
  // Not of every run: of BF16 ones no codes, by layer only if asked for.
  const std::span one(&run, 1);
  if (Chart chart = changes_by_step(one); !chart.series.empty())
    add(std::move(chart), "changes.png");
  if (Chart chart = changes_by_layer(one); !chart.series.empty()) {
    add(std::move(chart), "changes_by_layer.png");
  }
  if (charts.empty()) {
    fail(
        ErrorCode::kInvalidArgument,
        "the rows of '{}' have none of the columns of a run (reward_mean, kl_reference, loss, ...)",
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
  charts.push_back(changes_by_step(runs));
  charts.push_back(changes_by_layer(runs));
  charts.erase(std::remove_if(charts.begin(), charts.end(),
                              [](const Chart& chart) { return chart.series.empty(); }),
               charts.end());
  if (charts.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "none of the runs has the columns of a run (reward_mean, kl_reference, loss, ...)");
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
  if (!flags.output.empty() && flags.output.extension() != ".png") {
    fail(ErrorCode::kInvalidArgument, "--output '{}' must end in .png: that is what is written",
         flags.output.string());
  }
  if (const fs::path parent = flags.output.parent_path();
      !parent.empty() && !fs::is_directory(parent)) {
    fail(ErrorCode::kNotFound, "directory '{}' of --output does not exist; create it first",
         parent.string());
  }
  std::vector<Run> runs;
  for (size_t i = 0; i < flags.runs.size(); ++i) {
    runs.push_back({flags.labels.empty() ? default_label(flags.runs[i]) : flags.labels[i],
                    read_run_metrics(flags.runs[i])});
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
      "One run: writes plots/reward.png, kl.png, gap.png, phases.png and summary.png into it;\n"
      "of a supervised run (algorithm.loss: sft) loss.png and grad_norm.png instead of the first "
      "three.\n"
      "Example:\n  nibble plot runs/bf16 runs/int4 --labels bf16,int4 --output compare.png");
  command->callback([flags, &context] { context.run = [flags] { run_plot(*flags); }; });
}

}  // namespace nibble
