#include "cli/worker_process.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "cli/coordinator_client.h"
#include "cli/job_plans.h"
#include "cli/run_config.h"
#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "core/base/log.h"
#include "core/base/own_binary.h"
#include "core/comm/process_group.h"
#include "core/comm_cuda/nccl_group.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "core/rpc/channel.h"
#include "core/rpc/server.h"
#include "core/rpc/status.h"
#include "rollout/reward_config.h"
#include "trainer/memory_plan.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

GpuWire gpu_wire(const RunConfig& config) {
  return config.weight_sync.transport == TransportChoice::kGloo ? GpuWire::kGloo : GpuWire::kNccl;
}

// The services of a worker's roles; in a colocated worker both, which meet in the store.
class Roles {
 public:
  // `gpu_sharers`: workers on this one's GPU; 0: it computes on the CPU.
  Roles(const Assignment& assignment, const RunConfig& config, int gpu_sharers)
      : gpu_sharers_(gpu_sharers) {
    failpoint(assignment.worker_id + ".configure");
    const bool on_gpu = gpu_sharers > 0;
    if (assignment.role == WorkerRole::kBoth) {
      store_.emplace(assignment.index, trainer_mesh(config));
      if (on_gpu) shared_gpu_ = plan_shared_gpu(config);
    }
    if (assignment.role != WorkerRole::kRollout) add_trainer(assignment, config, on_gpu);
    if (assignment.role != WorkerRole::kTrainer) add_rollout(assignment, config, on_gpu);
  }
  std::vector<grpc::Service*> services() {
    std::vector<grpc::Service*> services;
    if (trainer_) services.push_back(&trainer_->service());
    if (rollout_) services.push_back(&rollout_->service());
    return services;
  }

 private:
  void add_trainer(const Assignment& assignment, const RunConfig& config, bool on_gpu) {
    TrainerServiceOptions options;
    options.job = config.run.directory.filename().string();
    options.rank = assignment.index;
    options.mesh = trainer_mesh(config);
    options.engine = engine_mesh(config.rollout);
    options.trainer = trainer_config(config);
    options.job_config = effective_yaml(config);
    options.records = record_source(config);
    options.changes_by_layer = config.logging.changes_by_layer;
    options.gpu = on_gpu ? make_backend(config) : nullptr;
    options.gpu_wire = gpu_wire(config);
    options.store = store_ ? &*store_ : nullptr;
    trainer_ = std::make_unique<TrainerService>(std::move(options));
  }
  void add_rollout(const Assignment& assignment, const RunConfig& config, bool on_gpu) {
    RolloutServiceOptions options;
    options.job = config.run.directory.filename().string();
    options.engine = assignment.index;
    options.trainers = trainer_mesh(config);
    JobPlans plans = job_plans(config);
    options.worker.plan = std::move(plans.serve);
    options.worker.draft = std::move(plans.draft);
    if (config.qat.start == QatStart::kCalibrated) options.worker.grid = kHeldGrid;
    options.worker.wants_routes = config.algorithm.routing_replay;
    options.worker.in_place = config.weight_sync.in_place;
    options.worker.gpu = on_gpu ? make_backend(config) : nullptr;
    options.gpu_wire = gpu_wire(config);
    options.external_engines = static_cast<int>(config.cluster.external_engines);
    options.store = store_ ? &*store_ : nullptr;
    options.worker.shared_gpu = shared_gpu_;
    options.worker.gpu_sharers = std::max(1, gpu_sharers_);
    options.worker.numerics = config.run.numerics;
    options.worker.model = config.model.path;
    options.worker.lora = config.lora.shape();
    options.worker.rollout = config.rollout;
    options.worker.reward = config.reward;
    options.worker.reward_command = {reward_binary(), reward_argument(reward_spec(config.reward))};
    rollout_ = std::make_unique<RolloutService>(std::move(options));
  }
  SharedGpu plan_shared_gpu(const RunConfig& config) const {
    const TrainerMemory trainer = plan_trainer_memory(trainer_config(config), store_->mesh(),
                                                      store_->rank(), DeviceKind::kCuda);
    const bool is_offloaded = trainer.state_home != trainer.device;
    const int64_t state_bytes =
        trainer.gradient_bytes + (is_offloaded ? 0 : trainer.master_bytes + trainer.moment_bytes);
    const int64_t reference_bytes =
        trainer.reference_home == trainer.device ? trainer.reference_bytes : 0;
    constexpr int64_t kMib = 1 << 20;
    get_logger("worker")->info(
        "trainer memory plan: state_mib={} packed_mib={} reference_mib={} ring_mib={} "
        "activations_mib={}",
        state_bytes / kMib, trainer.packed_bytes / kMib, reference_bytes / kMib,
        trainer.ring_bytes / kMib, (trainer.activation_bytes + trainer.margin_bytes) / kMib);
    return {ops::free_cuda_bytes(), trainer.total(),
            store_->mesh().world == 1     ? 0
            : config.weight_sync.in_place ? 1
                                          : 2};
  }
  // One for each role: a role's work goes in the order of its own thread.
  const ops::Backend* make_backend(const RunConfig& config) {
    return backends_.emplace_back(ops::make_cuda_backend(config.run.numerics)).get();
  }

  const int gpu_sharers_;
  std::vector<std::unique_ptr<ops::Backend>> backends_;
  std::optional<PackedStore> store_;
  std::optional<SharedGpu> shared_gpu_;  // before anything is allocated
  std::unique_ptr<TrainerService> trainer_;
  std::unique_ptr<RolloutService> rollout_;
};

// Takes a GPU for the process, if a worker computes on one: the workers of a job go round the
// machine's GPUs. Returns how many of them share it; 0: the worker computes on the CPU.
int take_gpu(const Assignment& assignment, const RunConfig& config) {
  const DeviceChoice choice = config.cluster.device;
  const int num_gpus = choice == DeviceChoice::kCpu ? 0 : ops::num_cuda_devices();
  if (choice == DeviceChoice::kCpu || (choice == DeviceChoice::kAuto && num_gpus == 0)) {
    return 0;
  }
  const int64_t place = assignment.role == WorkerRole::kRollout
                            ? config.cluster.trainers + assignment.index
                            : assignment.index;
  const int64_t workers = config.cluster.num_workers();
  const bool uses_nccl = config.weight_sync.transport != TransportChoice::kGloo ||
                         engine_mesh(config.rollout).world > 1;
  if (num_gpus > 0 && workers > num_gpus && uses_nccl) {
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
  return num_gpus == 0 ? 1 : static_cast<int>((workers + num_gpus - 1) / num_gpus);
}

}  // namespace

std::string reward_binary() { return (own_binary().parent_path() / "nibble-reward").string(); }

void run_worker(const std::string& coordinator) {
  CoordinatorClient client(coordinator);
  const RendezvousServer rendezvous;
  // The port is reserved first, because the coordinator hands it to peers.
  PortReservation port;
  const Assignment assignment = client.join(port.port(), rendezvous.port());
  const RunConfig config = parse_effective_yaml(assignment.config_yaml);
  ops::set_num_threads(worker_threads(config, assignment.role));
  Roles roles(assignment, config, take_gpu(assignment, config));
  RpcServerOptions options;
  options.port = port.release();
  RpcServer server(options, roles.services());
  client.keep_alive_until_stop(assignment);
  server.shutdown(std::chrono::milliseconds(5'000));
}

}  // namespace nibble
