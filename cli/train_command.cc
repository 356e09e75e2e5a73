#include <unistd.h>
#include <algorithm>

#include <CLI/CLI.hpp>
#include <array>
#include <atomic>
#include <csignal>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cli/command.h"
#include "cli/job_kind.h"
#include "cli/job_watch.h"
#include "cli/preflight.h"
#include "cli/resume_plan.h"
#include "cli/run_config.h"
#include "cli/run_directory.h"
#include "cli/worker_process.h"
#include "coordinator/coordinator_service.h"
#include "coordinator/run_files.h"
#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/own_binary.h"
#include "core/rpc/server.h"
#include "core/store/run_store.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds kWorkersEnd{15'000};
constexpr std::chrono::milliseconds kWorkersAsk{3'000};  // they ask every half second at most

struct TrainFlags {
  fs::path config;
  std::vector<std::string> overrides;
  const CLI::Option* resume = nullptr;  // whether it was given
  std::string resume_run;               // whose checkpoints; empty: those of run.directory
  int port = 0;
};

struct JobArguments {
  fs::path config;
  ResumeWish resume;
};

// `--resume job.yaml` in front of the job's file: the file is the job, not a run to go on from.
JobArguments arguments_of(const TrainFlags& flags) {
  JobArguments arguments{flags.config, {flags.resume->count() > 0, flags.resume_run}};
  if (arguments.config.empty() && fs::is_regular_file(flags.resume_run)) {
    std::swap(arguments.config, arguments.resume.run);
  }
  if (arguments.config.empty()) {
    fail(ErrorCode::kInvalidArgument, "config is required: name the YAML file of the job");
  }
  return arguments;
}

// Set by Ctrl-C: the step in progress is finished; a second Ctrl-C kills.
std::atomic<bool> g_interrupt = false;

void on_signal(int signal) {
  if (g_interrupt.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

// Into the run's store, for whoever looks for what happened to it.
void note(const RunConfig& config, Severity severity, const char* kind,
          const std::string& message) {
  try {
    RunStore(config.run.directory / "run.db")
        .record_event({unix_ms(), severity, "coordinator", kind, message});
  } catch (const Error& error) {
    get_logger("run")->warn("not recorded ({}): {}", error.what(), message);
  }
}

// For `nibble status`. What is left behind at the end tells nothing wrong: nobody answers there, or
// somebody with another id.
void announce(const RunConfig& config, const std::string& address, const std::string& id) {
  RunStore store(config.run.directory / "run.db");
  store.set_meta("coordinator_address", address);
  store.set_meta("coordinator_id", id);
}

// A run that goes on as another job is allowed, and said.
void note_resume(const RunConfig& config, const ResumePlan& plan) {
  if (!plan.changed.empty()) get_logger("run")->warn("{}", plan.message());
  note(config, Severity::kInfo, "resumed", plan.message());
}

void print_summary(const RunConfig& config, const RunSummary& summary) {
  const char* what = is_supervised(config) ? "loss" : "reward";
  std::string eval;  // a resumed run may have had its first evaluation before
  if (summary.first_eval) eval = fmt::format("; held-out {} {:.3f}", what, *summary.first_eval);
  if (summary.last_eval) {
    eval += summary.first_eval ? std::string(" ->") : fmt::format("; held-out {}", what);
    eval += fmt::format(" {:.3f}", *summary.last_eval);
  }
  fmt::print("{} steps in {}{}\n", summary.steps, config.run.directory.string(), eval);
}

// All workers run here. On a CPU they take turns, on a GPU there is little sense in more than a
// few.
void check_process_count(const RunConfig& config) {
  constexpr int64_t kMostPerCore = 16;
  const int64_t workers = config.cluster.num_workers();
  const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  if (workers <= kMostPerCore * cores) return;
  fail(ErrorCode::kInvalidArgument,
       "cluster.trainers = {} and cluster.rollout_workers = {} are {} processes on a machine of {} "
       "cores; at most {} a core: lower them, or start workers elsewhere (`nibble coordinator`)",
       config.cluster.trainers, config.cluster.rollout_workers, workers, cores, kMostPerCore);
}

// The workers' processes; none if a cluster starts them.
std::unique_ptr<JobWatch> start_workers(const RunConfig& config, Membership& membership,
                                        const std::string& address, bool spawn) {
  std::string level;
  for (const auto& [value, name] : enum_names(LogLevel{})) {
    if (value == config.logging.level) level = name;
  }
  const std::vector<std::string> command = {
      own_binary().string(), "--log-level", level, "worker", "--join", address};
  const int64_t count = spawn ? config.cluster.num_workers() : 0;
  return std::make_unique<JobWatch>(membership, command, static_cast<int>(count));
}

// A lost worker shows first as a failed call, to it or to one that waited for it; the user hears of
// the loss instead.
[[noreturn]] void explain(const RunConfig& config, const Error& error, Membership& membership,
                          JobWatch& workers) {
  const bool may_be_loss =
      error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kInternal;
  const auto loss = workers.loss(std::chrono::milliseconds(may_be_loss ? 1'000 : 0));
  membership.stop();
  note(config, Severity::kError, loss ? "worker_lost" : "run_failed",
       loss ? *loss + "; " + error.what() : error.what());
  if (!loss && error.code() != ErrorCode::kUnavailable) throw error;
  if (!loss) {
    fail(error.code(), "{}; the run stopped, `--resume` goes on from its last checkpoint",
         error.what());
  }
  get_logger("run")->warn("stopped by: {}", error.what());
  fail(ErrorCode::kUnavailable, "{}; the run stopped, `--resume` goes on from its last checkpoint",
       *loss);
}

// Workers that a cluster started end by themselves once they hear that the job is over, however it
// ended: the coordinator stays for as long as they take to ask.
struct EndWorkers {
  void operator()(Membership* membership) const {
    membership->stop();
    if (!membership->wait_told(Deadline::after(kWorkersAsk))) {
      get_logger("run")->warn(
          "not every worker heard that the job is over; they end when their lease does");
    }
  }
};

RunSummary run_loop(const RunConfig& config, Membership& membership, EngineBoard& board,
                    const std::vector<fs::path>& checkpoints, JobWatch& workers) {
  try {
    if (is_supervised(config)) {
      SupervisedLoop loop(coordinator_config(config), supervised_plan(config), membership,
                          checkpoints);
      return loop.run(g_interrupt);
    }
    RunLoop loop(coordinator_config(config), sampling_plan(config), membership, board, checkpoints);
    return loop.run(g_interrupt);
  } catch (const Error& error) {
    explain(config, error, membership, workers);
  }
}

void run_train(const TrainFlags& flags, bool spawn_workers) {
  const JobArguments arguments = arguments_of(flags);
  const RunConfig config = load_run_config(arguments.config, flags.overrides, read_env());
  check_inputs(config);
  if (spawn_workers) check_process_count(config);
  Membership membership(
      static_cast<int>(config.cluster.trainers), static_cast<int>(config.cluster.rollout_workers),
      std::chrono::milliseconds(config.cluster.lease_ms), config.cluster.placement);
  EngineBoard board;
  const std::string id = fmt::format("{}-{}", ::getpid(), unix_ms());
  ExternalEngines external(static_cast<int>(config.cluster.external_engines),
                           std::chrono::milliseconds(config.cluster.lease_ms));
  CoordinatorService service(
      membership, external, board,
      {id, config.run.directory.filename().string(), effective_yaml(config)});
  RpcServerOptions options;
  options.host = config.cluster.host;
  options.port = flags.port;
  const std::array<grpc::Service*, 1> services = {&service.service()};
  RpcServer server(options, services);
  const RunDirectoryLock lock(config.run.directory);
  const ResumePlan resume = plan_resume(config, arguments.resume);
  const std::vector<fs::path>& checkpoints = resume.checkpoints;
  if (!checkpoints.empty()) note_resume(config, resume);
  if (resume.from_another_run) {
    const fs::path origin = fs::absolute(checkpoints[0].parent_path().parent_path());
    write_file_atomically(origin_file(config.run.directory), origin.string());
  }
  write_file_atomically(config.run.directory / "config.yaml", effective_yaml(config));
  announce(config, server.address(), id);
  get_logger("run")->info("coordinator address={} trainers={} rollout_workers={} resume={}",
                          server.address(), config.cluster.trainers, config.cluster.rollout_workers,
                          checkpoints.empty() ? "no" : checkpoints[0].filename().string());
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  // A closed terminal, unless nohup said that it does not matter.
  if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) std::signal(SIGHUP, on_signal);
  const std::unique_ptr<Membership, EndWorkers> told(spawn_workers ? nullptr : &membership);
  const auto workers = start_workers(config, membership, server.address(), spawn_workers);
  const RunSummary summary = run_loop(config, membership, board, checkpoints, *workers);
  workers->finish(kWorkersEnd);
  print_summary(config, summary);
  if (summary.interrupted) {
    note(config, Severity::kInfo, "interrupted", fmt::format("after step {}", summary.steps));
    fail(ErrorCode::kCancelled, "interrupted after step {}; `--resume` goes on from there",
         summary.steps);
  }
}

void add_flags(CLI::App& command, const std::shared_ptr<TrainFlags>& flags) {
  command.add_option("config", flags->config, "YAML file of the job");
  command.add_option("--set", flags->overrides, "overrides a key: --set optimizer.lr=1e-5");
  flags->resume =
      command
          .add_option("--resume", flags->resume_run,
                      "go on from the newest checkpoint of run.directory, or of another "
                      "RUN directory, which is left as it is")
          ->expected(0, 1)
          ->type_name("[RUN]");
  command.add_option("--port", flags->port, "port of the coordinator (0: any free one)");
}

}  // namespace

void add_train_command(CLI::App& app, CommandContext& context) {
  auto* command = app.add_subcommand("train", "run a whole job on this machine");
  command->footer(
      "Example:\n  nibble train configs/ci/tiny-dense.yaml --set run.steps=4\n"
      "  nibble train job.yaml --resume runs/bf16 --set run.directory=runs/int4   # go on from "
      "another run");
  auto flags = std::make_shared<TrainFlags>();
  add_flags(*command, flags);
  command->callback([flags, &context] { context.run = [flags] { run_train(*flags, true); }; });
}

void add_coordinator_command(CLI::App& app, CommandContext& context) {
  auto* command = app.add_subcommand("coordinator",
                                     "run the coordinator of a job whose workers a cluster starts");
  command->footer("Example:\n  nibble coordinator job.yaml --port 7070");
  auto flags = std::make_shared<TrainFlags>();
  add_flags(*command, flags);
  command->callback([flags, &context] { context.run = [flags] { run_train(*flags, false); }; });
}

}  // namespace nibble
