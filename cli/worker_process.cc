#include "cli/worker_process.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <array>

#include "cli/coordinator_client.h"
#include "cli/run_config.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/comm/process_group.h"
#include "core/ops/torch_parallel.h"
#include "core/rpc/channel.h"
#include "core/rpc/server.h"
#include "core/rpc/status.h"

namespace nibble {
namespace {

// Forwards to the role's service, which is only known after the server's port is.
class Role {
 public:
  Role(const Assignment& assignment, const RunConfig& config) {
    const std::string job = config.run.directory.filename().string();
    if (assignment.role == WorkerRole::kTrainer) {
      TrainerServiceOptions options;
      options.job = job;
      options.rank = assignment.index;
      options.world = static_cast<int>(config.cluster.trainers);
      options.trainer = trainer_config(config);
      trainer_ = std::make_unique<TrainerService>(std::move(options));
    } else {
      RolloutServiceOptions options;
      options.job = job;
      options.engine = assignment.index;
      options.plan = job_plans(config).serve;
      options.worker.model = config.model.path;
      options.worker.rollout = config.rollout;
      options.worker.reward = config.reward;
      options.worker.reward_command = {own_binary(), "reward-worker", "--type", config.reward.type};
      rollout_ = std::make_unique<RolloutService>(std::move(options));
    }
  }
  grpc::Service& service() { return trainer_ ? trainer_->service() : rollout_->service(); }

 private:
  std::unique_ptr<TrainerService> trainer_;
  std::unique_ptr<RolloutService> rollout_;
};

}  // namespace

std::string own_binary() {
  std::array<char, 4096> path{};
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (length <= 0) fail(ErrorCode::kInternal, "cannot find our own binary");
  return {path.data(), static_cast<size_t>(length)};
}

void run_worker(const std::string& coordinator) {
  CoordinatorClient client(coordinator);
  const RendezvousServer rendezvous;
  // The port is reserved first, because the coordinator hands it to peers.
  PortReservation port;
  const Assignment assignment = client.join(port.port(), rendezvous.port());
  const RunConfig config = parse_effective_yaml(assignment.config_yaml);
  ops::set_num_threads(worker_threads(config, assignment.role));
  Role role(assignment, config);
  RpcServerOptions options;
  options.port = port.release();
  const std::array<grpc::Service*, 1> services = {&role.service()};
  RpcServer server(options, services);
  client.keep_alive_until_stop(assignment);
  server.shutdown(std::chrono::milliseconds(5'000));
}

}  // namespace nibble
