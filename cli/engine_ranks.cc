#include "cli/engine_ranks.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <string>
#include <vector>

#include "cli/forked_ranks.h"
#include "cli/model_engine.h"
#include "core/base/fail.h"
#include "core/device/cuda_device.h"
#include "rollout/engine/rank_follower.h"

namespace nibble {
namespace {

// A server runs until it is told to stop.
constexpr auto kLongestRun = std::chrono::hours(24 * 365);

std::atomic<pid_t> leader_process = 0;

// Ctrl-C goes to all processes of a terminal, also to the first rank; what somebody sends to this
// process alone does not.
extern "C" void pass_on(int signal, siginfo_t* info, void* /*context*/) {
  if (info->si_code != SI_KERNEL) (void)::kill(leader_process, signal);
}

void leave_signals_to(pid_t leader) {
  leader_process = leader;
  struct sigaction action {};
  action.sa_sigaction = pass_on;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  (void)::sigaction(SIGINT, &action, nullptr);
  (void)::sigaction(SIGTERM, &action, nullptr);
}

// They end when the first rank does.
void ignore_signals() {
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, SIG_IGN);
}

void follow(const ModelFlags& flags) {
  ignore_signals();
  const auto model = load_model(flags);
  if (model->gpu) ops::bind_cuda_thread();
  follow_leader(model->ranks->rank.control(),
                {[&](const RunnerSizes& sizes) {
                   return own_runner_factory(*model, flags, sizes.graph_batches)(model->spec,
                                                                                 sizes.config);
                 },
                 [&](int64_t /*version*/) { return model->weights; }});
}

}  // namespace

void run_on_ranks(ModelFlags& flags, const std::function<void()>& body) {
  check_model_flags(flags);
  if (!flags.has_ranks()) return body();
  std::vector<ForkedRank> ranks;
  ranks.reserve(static_cast<size_t>(flags.tensor));
  for (int r = 0; r < flags.tensor; ++r) {
    ranks.push_back({"rank " + std::to_string(r), [&flags, &body, r](int port) {
                       flags.rank = {r, port};
                       if (r == 0) {
                         body();
                       } else {
                         follow(flags);
                       }
                       return std::string();
                     }});
  }
  run_forked(ranks, Deadline::after(kLongestRun),
             [](const std::vector<pid_t>& processes) { leave_signals_to(processes.front()); });
}

}  // namespace nibble
