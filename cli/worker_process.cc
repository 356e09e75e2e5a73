#include "cli/worker_process.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <array>
#include <filesystem>

#include "cli/coordinator_client.h"
#include "cli/run_config.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/comm/process_group.h"
#include "core/comm_cuda/nccl_group.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "core/rpc/channel.h"
#include "core/rpc/server.h"
#include "core/rpc/status.h"

namespace nibble {
namespace {

// Forwards to the role's service, which is only known after the server's port is.
class Role {
 public:
  Role(const Assignment& assignment, const RunConfig& config, const ops::Backend* gpu) {
    const GpuWire wire =
        config.weight_sync.transport == TransportChoice::kGloo ? GpuWire::kGloo : GpuWire::kNccl;
    const std::string job = config.run.directory.filename().string();
    if (assignment.role == WorkerRole::kTrainer) {
      TrainerServiceOptions options;
      options.job = job;
      options.rank = assignment.index;
      options.world = static_cast<int>(config.cluster.trainers);
      options.trainer = trainer_config(config);
      options.records = record_source(config);
      options.gpu = gpu;
      options.gpu_wire = wire;
      trainer_ = std::make_unique<TrainerService>(std::move(options));
    } else {
      RolloutServiceOptions options;
      options.job = job;
      options.engine = assignment.index;
      options.worker.plan = job_plans(config).serve;
      options.worker.gpu = gpu;
      options.gpu_wire = wire;
      options.worker.numerics = config.run.numerics;
      options.worker.model = config.model.path;
      options.worker.rollout = config.rollout;
      options.worker.reward = config.reward;
      options.worker.reward_command = {reward_binary(), config.reward.type};
      rollout_ = std::make_unique<RolloutService>(std::move(options));
    }
  }
  grpc::Service& service() { return trainer_ ? trainer_->service() : rollout_->service(); }

 private:
  std::unique_ptr<TrainerService> trainer_;
  std::unique_ptr<RolloutService> rollout_;
};

// The GPU of a worker, or null for the CPU: the workers of a job go round the machine's GPUs.
std::unique_ptr<ops::Backend> gpu_of(const Assignment& assignment, const RunConfig& config) {
  const DeviceChoice choice = config.cluster.device;
  const int num_gpus = choice == DeviceChoice::kCpu ? 0 : ops::num_cuda_devices();
  if (choice == DeviceChoice::kCpu || (choice == DeviceChoice::kAuto && num_gpus == 0)) {
    return nullptr;
  }
  const int64_t place = assignment.role == WorkerRole::kTrainer
                            ? assignment.index
                            : config.cluster.trainers + assignment.index;
  const int64_t workers = config.cluster.trainers + config.cluster.rollout_workers;
  if (num_gpus > 0 && workers > num_gpus &&
      config.weight_sync.transport != TransportChoice::kGloo) {
    share_gpu_between_nccl_ranks(static_cast<int>(place));
    if (place == 0) {
      get_logger("worker")->warn(
          "{} workers share {} GPU(s): NCCL goes over loopback sockets between them", workers,
          num_gpus);
    }
  }
  const auto info = ops::use_cuda_device(num_gpus == 0 ? 0 : static_cast<int>(place % num_gpus));
  get_logger("worker")->info("gpu={} name='{}' memory_mib={}", info.index, info.name,
                             info.total_bytes >> 20);
  return ops::make_cuda_backend(config.run.numerics);
}

}  // namespace

std::string own_binary() {
  std::array<char, 4096> path{};
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (length <= 0) fail(ErrorCode::kInternal, "cannot find our own binary");
  return {path.data(), static_cast<size_t>(length)};
}

std::string reward_binary() {
  return (std::filesystem::path(own_binary()).parent_path() / "nibble-reward").string();
}

void run_worker(const std::string& coordinator) {
  CoordinatorClient client(coordinator);
  const RendezvousServer rendezvous;
  // The port is reserved first, because the coordinator hands it to peers.
  PortReservation port;
  const Assignment assignment = client.join(port.port(), rendezvous.port());
  const RunConfig config = parse_effective_yaml(assignment.config_yaml);
  ops::set_num_threads(worker_threads(config, assignment.role));
  const std::unique_ptr<ops::Backend> gpu = gpu_of(assignment, config);
  Role role(assignment, config, gpu.get());
  RpcServerOptions options;
  options.port = port.release();
  const std::array<grpc::Service*, 1> services = {&role.service()};
  RpcServer server(options, services);
  client.keep_alive_until_stop(assignment);
  server.shutdown(std::chrono::milliseconds(5'000));
}

}  // namespace nibble
