#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "cli/status_report.h"

namespace nibble {
namespace {

using Out = std::back_insert_iterator<std::string>;

std::string duration(double seconds) {
  if (seconds < 60.0) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(seconds);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 48 * 3600) return fmt::format("{} h {} min", whole / 3600, whole / 60 % 60);
  return fmt::format("{} days", whole / (24 * 3600));
}

std::string since(int64_t then_ms, int64_t now_ms) {
  return duration(static_cast<double>(std::max<int64_t>(0, now_ms - then_ms)) / 1000.0);
}

std::string size(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= 1e9) return fmt::format("{:.2f} GB", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f} MB", value / 1e6);
  return fmt::format("{:.1f} kB", value / 1e3);
}

std::string headline(const RunRecord& record, const LiveStatus& live) {
  switch (live.state) {
    case CoordinatorState::kRunning:
      return fmt::format("running, coordinator at {}", record.coordinator_address);
    case CoordinatorState::kNotAnswering:
      return fmt::format("the coordinator at {} does not answer: stopped, or it hangs",
                         record.coordinator_address);
    case CoordinatorState::kNotRunning:
      break;
  }
  const bool is_done =
      record.finished_step && record.num_steps && *record.finished_step >= *record.num_steps;
  return is_done ? "not running, finished" : "not running";
}

void add_step(const RunRecord& record, bool is_running, Out out) {
  if (!record.last_step) {
    fmt::format_to(out, "  step            none begun\n");
    return;
  }
  const StepRecord& step = *record.last_step;
  fmt::format_to(out, "  step            {}", step.step);
  if (record.num_steps) fmt::format_to(out, " of {}", *record.num_steps);
  if (step.ended_at_ms) {
    fmt::format_to(out, ", {} {} ago", step.status == StepStatus::kDone ? "done" : "failed",
                   since(*step.ended_at_ms, record.read_at_ms));
  } else {
    fmt::format_to(out, ", {} {} ago", is_running ? "begun" : "begun and not finished,",
                   since(step.started_at_ms, record.read_at_ms));
  }
  if (record.step_ms && record.finished_step) {
    fmt::format_to(out, "; {:.2f} s a step", *record.step_ms / 1000.0);
    if (record.tokens_per_s) fmt::format_to(out, ", {:.0f} tokens/s", *record.tokens_per_s);
    if (is_running && record.num_steps) {
      const auto left = static_cast<double>(*record.num_steps - *record.finished_step);
      fmt::format_to(out, ", {} left", duration(left * *record.step_ms / 1000.0));
    }
  }
  fmt::format_to(out, "\n");
}

void add_versions(const RunRecord& record, Out out) {
  if (record.committed) {
    fmt::format_to(out, "  version         {}, of step {}, epoch {}, on {}\n",
                   record.committed->version, record.committed->step, record.committed->epoch,
                   fmt::join(record.committed->members, ", "));
  }
  if (!record.undecided.empty()) {
    fmt::format_to(out, "  undecided       version {}\n", fmt::join(record.undecided, ", "));
  }
  if (!record.aborted.empty()) {
    constexpr std::ptrdiff_t kShown = 5;
    const auto first = record.aborted.end() - std::min(kShown, std::ssize(record.aborted));
    fmt::format_to(out, "  aborted         {} versions, last {}\n", record.aborted.size(),
                   fmt::join(first, record.aborted.end(), ", "));
  }
  if (!record.publication) return;
  const PublicationFigures& cost = *record.publication;
  fmt::format_to(out, "  publication     {} in {:.1f} ms, on the wire {:.1f} ms", size(cost.bytes),
                 cost.total_ms, cost.wire_ms);
  if (const auto rate = cost.gb_per_s()) fmt::format_to(out, " ({:.3f} GB/s)", *rate);
  fmt::format_to(out, ", pause {:.2f} ms; {} engines serve it\n", cost.pause_ms,
                 cost.serving_engines);
}

void add_events(const RunRecord& record, Out out) {
  for (const FencingRecord& engine : record.fencing) {
    fmt::format_to(out, "  {}       {}; fenced {} times, caught up {} times\n", engine.engine,
                   engine.is_fenced ? "fenced" : "not fenced", engine.times_fenced,
                   engine.times_caught_up);
  }
  if (!record.last_failure) return;
  const EventRecord& event = *record.last_failure;
  fmt::format_to(out, "  last failure    {} ago, {} {}: {}\n",
                 since(event.time_ms, record.read_at_ms), event.source, event.kind, event.message);
}

const char* standing_word(const std::optional<EngineStanding>& standing) {
  if (!standing) return "starting";
  switch (*standing) {
    case EngineStanding::kStarting:
      return "starting";
    case EngineStanding::kServing:
      return "serving";
    case EngineStanding::kFenced:
      return "fenced";
  }
  return "";
}

std::string edge_words(const std::optional<EdgeInFlight>& edge) {
  if (!edge) return "-";
  std::string text = fmt::format(
      "{} -> {}", edge->from_version ? std::to_string(*edge->from_version) : "?", edge->version);
  if (edge->expected_bytes) {
    text +=
        fmt::format(" {} of {} ({:.0f} %)", size(*edge->arrived_bytes), size(*edge->expected_bytes),
                    100.0 * static_cast<double>(*edge->arrived_bytes) /
                        static_cast<double>(*edge->expected_bytes));
  }
  if (!edge->source.empty()) text += fmt::format(" from {}", edge->source);
  if (edge->age) {
    text += fmt::format(", {}", duration(static_cast<double>(edge->age->count()) / 1000.0));
  }
  return text;
}

void add_worker(const WorkerView& worker, const std::optional<EngineAnswer>& answer, Out out) {
  const std::string heartbeat =
      duration(static_cast<double>(worker.heartbeat_age.count()) / 1000.0) + " ago";
  fmt::format_to(out, "  {:<12} {:<22} {:>8}  ", worker.member.id, worker.member.address,
                 worker.member.pid);
  if (!answer) {
    fmt::format_to(out, "{}\n", heartbeat);
    return;
  }
  const EngineStatus* status = answer->status ? &*answer->status : nullptr;
  fmt::format_to(out, "{:<12} {:<9} {:>8} {:>6}  {:<15} {}\n", heartbeat,
                 standing_word(worker.standing),
                 status != nullptr ? std::to_string(status->served_version) : "?",
                 status != nullptr ? std::to_string(status->epoch) : "?",
                 status != nullptr ? status->state : "does not answer",
                 edge_words(edge_in_flight(worker.transfer, *answer)));
}

void add_workers(const LiveStatus& live, Out out) {
  if (live.job.workers.empty()) {
    fmt::format_to(out, "  workers         none has joined\n");
    return;
  }
  fmt::format_to(out, "\n  {:<12} {:<22} {:>8}  {:<12} {:<9} {:>8} {:>6}  {:<15} {}\n", "worker",
                 "address", "pid", "heartbeat", "engine", "version", "epoch", "state", "in flight");
  for (size_t i = 0; i < live.job.workers.size(); ++i) {
    add_worker(live.job.workers[i], live.engines[i], out);
  }
  for (size_t i = 0; i < live.job.workers.size(); ++i) {
    const auto& answer = live.engines[i];
    if (!answer) continue;
    const std::string& why = answer->status ? answer->status->last_failure : answer->error;
    if (!why.empty()) fmt::format_to(out, "  {}: {}\n", live.job.workers[i].member.id, why);
  }
}

void add_external_engines(const JobView& job, Out out) {
  if (job.external_engines.empty()) return;
  fmt::format_to(out, "\n  {:<20} {:<22} {:>8}  {:<12} {:>8}\n", "external engine", "host", "pid",
                 "heartbeat", "version");
  for (const ExternalEngineView& view : job.external_engines) {
    const ExternalEngine& engine = view.engine;
    const std::string heartbeat =
        duration(static_cast<double>(view.heartbeat_age.count()) / 1000.0) + " ago";
    fmt::format_to(out, "  {:<20} {:<22} {:>8}  {:<12} {:>8}  {}\n", engine.name, engine.host,
                   engine.pid, heartbeat, engine.served_version, engine.last_failure);
  }
}

}  // namespace

std::string status_text(const RunRecord& record, const LiveStatus& live) {
  const bool is_running = live.state == CoordinatorState::kRunning;
  std::string text = fmt::format("{}: {}\n", record.directory.string(), headline(record, live));
  const Out out(text);
  add_step(record, is_running, out);
  add_versions(record, out);
  add_events(record, out);
  if (is_running) {
    add_workers(live, out);
    add_external_engines(live.job, out);
  }
  return text;
}

}  // namespace nibble
