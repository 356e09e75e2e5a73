#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <atomic>
#include <csignal>
#include <memory>
#include <optional>

#include "cli/child_processes.h"
#include "cli/command.h"
#include "cli/run_config.h"
#include "coordinator/coordinator_service.h"
#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/rpc/server.h"
#include "trainer/state/train_checkpoint.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct TrainFlags {
  fs::path config;
  std::vector<std::string> overrides;
  bool resume = false;
  int port = 0;
};

// Set by Ctrl-C: the step in progress is finished; a second Ctrl-C kills.
std::atomic<bool> g_interrupt = false;

void on_signal(int signal) {
  if (g_interrupt.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

/// Keeps a second process out of a run directory for as long as it lives.
class RunLock {
 public:
  explicit RunLock(const fs::path& directory) {
    std::error_code error;
    fs::create_directories(directory, error);
    const fs::path path = directory / ".lock";
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0 || ::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (fd_ >= 0) ::close(fd_);
      fail(ErrorCode::kFailedPrecondition,
           "run directory '{}' cannot be locked: another `nibble train` uses it, or it is not "
           "writable",
           directory.string());
    }
  }
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock() { ::close(fd_); }

 private:
  int fd_ = -1;
};

// Where to resume, if there is something and the user wants it.
fs::path choose_checkpoint(const RunConfig& config, bool resume) {
  const auto found = list_checkpoints(config.run.directory / "checkpoints");
  const bool used = fs::exists(config.run.directory / "metrics.jsonl");
  if (!resume && used) {
    fail(ErrorCode::kInvalidArgument,
         "run directory '{}' holds a run; add --resume to go on with it, or choose another "
         "run.directory",
         config.run.directory.string());
  }
  if (!resume || found.empty()) return {};
  return found.back().path;
}

std::string own_binary() {
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (length <= 0) fail(ErrorCode::kInternal, "cannot find our own binary");
  return {path.data(), static_cast<size_t>(length)};
}

void print_summary(const RunConfig& config, const RunSummary& summary) {
  const auto eval_text = [](const std::optional<double>& value) {
    return value ? fmt::format("{:.3f}", *value) : std::string("-");
  };
  fmt::print("{} steps in {}; held-out reward {} -> {}\n", summary.steps,
             config.run.directory.string(), eval_text(summary.first_eval),
             eval_text(summary.last_eval));
}

void run_train(const TrainFlags& flags, bool spawn_workers) {
  const RunConfig config = load_run_config(flags.config, flags.overrides, read_env());
  const RunLock lock(config.run.directory);
  const fs::path checkpoint = choose_checkpoint(config, flags.resume);
  write_file_atomically(config.run.directory / "config.yaml", effective_yaml(config));
  Membership membership(static_cast<int>(config.cluster.trainers),
                        static_cast<int>(config.cluster.rollout_workers),
                        std::chrono::milliseconds(config.cluster.lease_ms));
  CoordinatorService service(membership, effective_yaml(config));
  RpcServerOptions options;
  options.host = config.cluster.host;
  options.port = flags.port;
  const std::array<grpc::Service*, 1> services = {&service.service()};
  RpcServer server(options, services);
  get_logger("run")->info("coordinator address={} trainers={} rollout_workers={} resume={}",
                          server.address(), config.cluster.trainers, config.cluster.rollout_workers,
                          checkpoint.empty() ? "no" : checkpoint.filename().string());
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  std::optional<ChildProcesses> children;
  std::mutex death_mutex;
  std::string death;
  if (spawn_workers) {
    const std::vector<std::string> command = {own_binary(), "--log-level", config.logging.level,
                                              "worker",     "--join",      server.address()};
    children.emplace(command,
                     static_cast<int>(config.cluster.trainers + config.cluster.rollout_workers));
    children->watch([&](const std::string& what) {
      {
        const std::lock_guard guard(death_mutex);
        death = what;
      }
      membership.stop();
      // Peers of the dead one may wait for it; end them, so that every call fails now.
      children->kill_others();
    });
  }
  RunSummary summary;
  try {
    RunLoop loop(coordinator_config(config), sampling_plan(config), membership, checkpoint);
    summary = loop.run(g_interrupt);
  } catch (const Error& error) {
    membership.stop();
    const std::lock_guard guard(death_mutex);
    if (death.empty()) throw;
    fail(ErrorCode::kUnavailable, "{}; the run stopped: {}", death, error.what());
  }
  if (children) {
    children->release();
    children->wait_all(15);
  }
  print_summary(config, summary);
  if (summary.interrupted) {
    fail(ErrorCode::kCancelled, "interrupted after step {}; `--resume` goes on from there",
         summary.steps);
  }
}

void add_flags(CLI::App& command, const std::shared_ptr<TrainFlags>& flags) {
  command.add_option("config", flags->config, "YAML file of the job")->required();
  command.add_option("--set", flags->overrides, "overrides a key: --set optimizer.lr=1e-5");
  command.add_flag("--resume", flags->resume, "go on from the newest checkpoint of run.directory");
  command.add_option("--port", flags->port, "port of the coordinator (0: any free one)");
}

}  // namespace

void add_train_command(CLI::App& app, CommandContext& context) {
  auto* command = app.add_subcommand("train", "run a whole job on this machine");
  command->footer("Example:\n  nibble train configs/ci/tiny-dense.yaml --set run.steps=4");
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
