#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/status_report.h"

namespace nibble {
namespace {

struct StatusFlags {
  std::filesystem::path run;
  std::filesystem::path baseline;  // empty: none
  bool json = false;
};

void run_status(const StatusFlags& flags) {
  const RunRecord record = read_run_record(flags.run);
  const LiveStatus live = ask_live_status(record.coordinator_address, record.coordinator_id);
  std::optional<RunComparison> comparison;
  if (!flags.baseline.empty()) comparison = compare_runs(flags.run, flags.baseline);
  if (flags.json) {
    OrderedJson json = status_json(record, live);
    json["baseline"] = comparison ? comparison_json(*comparison) : OrderedJson(nullptr);
    // Messages may quote whatever a model or a peer wrote.
    fmt::print("{}\n", json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace));
    return;
  }
  fmt::print("{}", status_text(record, live));
  if (comparison) fmt::print("\n{}", comparison_text(*comparison));
}

}  // namespace

void add_status_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "status", "How a run stands: steps, versions, publications, failures; live, its workers too");
  auto flags = std::make_shared<StatusFlags>();  // shared: parse and work are two callbacks
  command->add_option("run", flags->run, "run.directory of a job")->required();
  command->add_flag("--json", flags->json, "print one JSON object");
  command->add_option("--baseline", flags->baseline,
                      "another run.directory to compare with, figure by figure over common steps");
  command->footer(
      "Reads run.db and writes nothing; of a live run it asks the coordinator and each engine too, "
      "2 s each.\n"
      "--json: run, state (running, not_answering, not_running),\n"
      "  step {last, status, seconds_since, finished, total, mean_ms, tokens_per_s},\n"
      "  versions {committed {version, epoch, step, members}, undecided, aborted},\n"
      "  publication {bytes, ms, wire_ms, gb_per_s, pause_ms, serving_engines},\n"
      "  fencing [{engine, fenced, times_fenced, times_caught_up}],\n"
      "  last_failure {time_ms, seconds_since, severity, source, kind, message},\n"
      "  coordinator {address, epoch, version, lease_ms},\n"
      "  workers [{id, role, address, host, pid, up, heartbeat_seconds, engine}],\n"
      "  engine {standing (starting, serving, fenced), answers, error, state, served_version, "
      "epoch,\n"
      "    last_failure, transfer {version, from_version, source, seconds, arrived_bytes, "
      "expected_bytes}},\n"
      "  external_engines [{name, host, pid, served_version, heartbeat_seconds, last_failure}],\n"
      "  baseline {run, metrics {NAME {first_step, last_step, common_steps, tail_steps,\n"
      "    last {run, baseline, difference}, tail_mean {run, baseline, difference}}}}.\n"
      "What is not known is null.\n"
      "Example:\n  nibble status runs/tiny-dense\n"
      "  nibble status runs/tiny-dense --json | jq .versions.committed.version\n"
      "  nibble status runs/int4 --baseline runs/bf16");
  command->callback([flags, &context] { context.run = [flags] { run_status(*flags); }; });
}

}  // namespace nibble
