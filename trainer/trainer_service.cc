#include "trainer/trainer_service.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <mutex>

#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "core/base/log.h"
#include "core/base/task_thread.h"
#include "core/comm_cuda/gpu_group.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/ops/cpu_backend.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"
#include "trainer/batching.h"
#include "trainer/metrics_codec.h"
#include "trainer/sample_client.h"
#include "trainer/snapshot_slot.h"
#include "weight_sync/group_transport.h"
#include "weight_sync/held_transport.h"
#include "weight_sync/sender.h"
#include "weight_sync/sync_codec.h"

namespace nibble {
namespace {

// The way to one engine: a process group of its own, so that a dead engine holds no other; none to
// the engine of this process.
struct EngineLink {
  std::unique_ptr<ProcessGroup> group;
  std::unique_ptr<Transport> transport;
};

struct Source {
  uint64_t prompt_id;
  std::string engine;
  int64_t tokens;
};

}  // namespace

class TrainerService::Impl final : public v1::Trainer::Service {
 public:
  explicit Impl(TrainerServiceOptions options)
      : options_(std::move(options)),
        log_(get_logger(fmt::format("trainer/{}", options_.rank))),
        snapshots_(options_.rank) {}
  ~Impl() override {
    snapshots_.clear();
    thread_.run([&] { trainer_.reset(); });
  }

  grpc::Status Start(grpc::ServerContext*, const v1::StartTrainerRequest* request,
                     v1::StartTrainerResponse* response) override {
    return run_rpc([&] {
      thread_.run([&] { start(*request, *response); });
      log_->info("ready rank={} world={}", options_.rank, options_.mesh.world);
    });
  }

  grpc::Status Load(grpc::ServerContext*, const v1::LoadRequest* request,
                    v1::LoadResponse* response) override {
    return run_rpc([&] {
      const TrainProgress progress =
          thread_.run([&] { return trainer().load(request->checkpoint()); });
      response->set_step(progress.step);
      response->set_updates(progress.updates);
      response->set_rollout_state(progress.rollout_state);
      log_->info("goes on from step={} checkpoint={}", progress.step, request->checkpoint());
    });
  }

  grpc::Status Train(grpc::ServerContext*, const v1::TrainRequest* request,
                     v1::TrainResponse* response) override {
    return run_rpc([&] {
      const auto updates = fetch_share(*request);
      const TrainMetrics metrics =
          thread_.run([&] { return trainer().train(updates, request->step()); });
      encode_metrics(metrics, options_.changes_by_layer, *response);
    });
  }

  grpc::Status TrainRecords(grpc::ServerContext*, const v1::TrainRecordsRequest* request,
                            v1::TrainResponse* response) override {
    return run_rpc([&] {
      std::vector<const TokenRecord*> batch;
      for (const int64_t index : request->records()) {
        batch.push_back(&train_record(index));
      }
      const auto share = share_of(batch);
      encode_metrics(thread_.run([&] { return trainer().train_records(share); }),
                     options_.changes_by_layer, *response);
    });
  }

  grpc::Status EvaluateRecords(grpc::ServerContext*, const v1::EvaluateRecordsRequest*,
                               v1::EvaluateRecordsResponse* response) override {
    return run_rpc([&] {
      std::vector<const TokenRecord*> all;
      for (const TokenRecord& record : records().eval) all.push_back(&record);
      const auto share = share_of(all);
      const TokenLoss loss = thread_.run([&] { return trainer().evaluate_records(share); });
      response->set_loss(loss.loss);
      response->set_tokens(loss.target_tokens);
      response->set_records(std::ssize(records().eval));
    });
  }

  grpc::Status Snapshot(grpc::ServerContext*, const v1::SnapshotRequest* request,
                        v1::Empty*) override {
    return run_rpc([&] {
      snapshots_.take(request->directory(), request->step(), [&] {
        return thread_.run([&] {
          return trainer().snapshot({request->step(),
                                     request->weight_version(),
                                     0,
                                     {},
                                     request->rollout_state(),
                                     options_.job_config});
        });
      });
    });
  }

  grpc::Status WriteSnapshot(grpc::ServerContext*, const v1::WriteSnapshotRequest* request,
                             v1::Empty*) override {
    return run_rpc([&] {
      failpoint(name("write_snapshot"));
      snapshots_.write(request->step());
      failpoint(name("snapshot_written"));
    });
  }

  grpc::Status FinishSnapshot(grpc::ServerContext*, const v1::FinishSnapshotRequest* request,
                              v1::Empty*) override {
    return run_rpc([&] {
      failpoint(name("finish_snapshot"));
      snapshots_.finish(request->step(), request->publish());
    });
  }

  grpc::Status JoinEngine(grpc::ServerContext*, const v1::JoinEngineRequest* request,
                          v1::Empty*) override {
    return run_rpc([&] {
      failpoint(name("join"));
      {
        // A transfer to an engine that was left behind may still wait there.
        const std::lock_guard lock(mutex_);
        const auto before = engines_.find(request->engine());
        if (before != engines_.end()) before->second->transport->abort();
        engines_.erase(request->engine());
      }
      auto link = std::make_shared<EngineLink>(
          is_own_engine(request->engine())
              ? EngineLink{nullptr, std::make_unique<HeldTransport>()}
              : join_engine(request->engine(), decode_rendezvous(request->rendezvous())));
      const std::lock_guard lock(mutex_);
      engines_[request->engine()] = std::move(link);
    });
  }

  grpc::Status Plan(grpc::ServerContext*, const v1::PlanRequest* request,
                    v1::PlanResponse* response) override {
    return run_rpc([&] {
      const SyncPlan plan =
          make_sync_plan(request->epoch(), request->engine(),
                         {request->membership().begin(), request->membership().end()});
      response->set_plan_digest(digest_bytes(plan.digest));
      response->set_bytes(plan.bytes);
      response->set_manifest_text(manifest_text(sender().manifest()));
    });
  }

  grpc::Status SendWeights(grpc::ServerContext*, const v1::SendWeightsRequest* request,
                           v1::SendWeightsResponse* response) override {
    return run_rpc([&] {
      failpoint(name("send"));
      const Transaction transaction = decode_transaction(request->transaction());
      publish(transaction.version, request->committed_version());
      const SyncPlan plan =
          make_sync_plan(transaction.epoch, request->engine(),
                         {request->membership().begin(), request->membership().end()});
      const auto engine = engine_link(request->engine());
      const Stopwatch clock;
      const SenderReport report =
          sender().move(transaction, plan, *engine->transport,
                        Deadline::after(std::chrono::milliseconds(request->deadline_ms())));
      response->set_wire_ms(clock.elapsed_ms());
      response->set_bytes(is_own_engine(request->engine()) ? 0 : report.bytes);
      encode_report(report, *response->mutable_report());
      failpoint(name("sent"));
    });
  }

 private:
  void start(const v1::StartTrainerRequest& request, v1::StartTrainerResponse& response) {
    // First, because a bad record must not leave the other ranks waiting in the rendezvous.
    if (options_.records) {
      records_ = load_token_records(*options_.records);
      response.set_train_records(std::ssize(records_->train));
    }
    const int world = options_.mesh.world;
    Rendezvous meeting = decode_rendezvous(request.rendezvous());
    group_ = world == 1 ? solo_group("trainers") : join_gloo_group(meeting, options_.rank, world);
    const auto join_part = [&](const std::string& name, int rank, int size) {
      meeting.group_name = name;
      return join_group(meeting, rank, size);
    };
    if (options_.gpu != nullptr) {
      ops::bind_cuda_thread();
      device_group_ =
          world == 1 ? solo_group("trainers/gpu") : join_part("trainers/gpu", options_.rank, world);
      kernels_ = ops::make_cuda_weight_kernels();
    } else {
      kernels_ = std::make_unique<kernels::CpuWeightKernels>(serial_);
    }
    mesh_groups_ = std::make_unique<MeshGroups>(
        options_.mesh, device_group_ ? *device_group_ : *group_, join_part);
    trainer_ = std::make_unique<nibble::Trainer>(
        options_.trainer, *group_, *mesh_groups_,
        options_.gpu != nullptr ? *options_.gpu : ops::cpu_backend());
    const std::optional<DraftPart>& draft = options_.trainer.draft;
    joint_ = join_parameters(trainer_->spec().table, trainer_->serving_layout().plan,
                             draft ? &*draft : nullptr);
    sender_ = std::make_unique<WeightSender>(
        options_.rank,
        make_manifest(joint_.table, joint_.plan,
                      options_.trainer.calibrated.empty() ? kDerivedGrid : kHeldGrid),
        *kernels_);
  }

  // A group that moves weights from where they are.
  std::unique_ptr<ProcessGroup> join_group(const Rendezvous& rendezvous, int rank,
                                           int world) const {
    if (options_.gpu == nullptr) return join_gloo_group(rendezvous, rank, world);
    ops::bind_cuda_thread();
    return join_gpu_group(options_.gpu_wire, rendezvous, rank, world);
  }

  bool is_own_engine(int engine) const {
    return options_.store != nullptr && engine == options_.rank;
  }

  // A group of the ranks and one more, the engine. An engine that is a rank too has that rank's
  // place: NCCL refuses two ranks of one process on one GPU.
  EngineLink join_engine(int engine, const Rendezvous& rendezvous) const {
    const bool colocated = options_.store != nullptr;
    const DeviceKind device = options_.gpu != nullptr ? DeviceKind::kCuda : DeviceKind::kCpu;
    const int world = options_.mesh.world;
    auto group = join_group(rendezvous, options_.rank, colocated ? world : world + 1);
    auto transport = std::make_unique<GroupTransport>(*group, colocated ? engine : world, device);
    return {std::move(group), std::move(transport)};
  }

  // This rank's share of the global batch, one list of groups per optimizer step; tensor ranks get
  // the same. All ranks compute the same shares from the same request.
  std::vector<std::vector<SampleGroup>> fetch_share(const v1::TrainRequest& request) {
    const int64_t updates = options_.trainer.optimizer.steps_per_rollout;
    const int64_t count = request.groups_size();
    std::vector<std::vector<SampleGroup>> shares;
    for (int64_t u = 0; u < updates; ++u) {
      std::vector<Source> sources;
      std::vector<int64_t> tokens;
      for (int64_t g = count * u / updates; g < count * (u + 1) / updates; ++g) {
        const v1::GroupSource& source = request.groups(static_cast<int>(g));
        sources.push_back({source.prompt_id(), source.engine_address(), source.computed_tokens()});
        tokens.push_back(source.computed_tokens());
      }
      const auto mine =
          balance_groups(tokens, options_.mesh.num_data())[static_cast<size_t>(data_rank())];
      std::map<std::string, std::vector<uint64_t>> by_engine;
      for (const int64_t g : mine) {
        const Source& source = sources[static_cast<size_t>(g)];
        by_engine[source.engine].push_back(source.prompt_id);
      }
      std::map<uint64_t, SampleGroup> fetched;
      for (const auto& [engine, ids] : by_engine) {
        for (SampleGroup& group : fetch_samples(engine, ids, options_.fetch_timeout)) {
          fetched[group.prompt_id] = std::move(group);
        }
      }
      std::vector<SampleGroup> groups;
      for (const int64_t g : mine) {
        groups.push_back(std::move(fetched[sources[static_cast<size_t>(g)].prompt_id]));
      }
      shares.push_back(std::move(groups));
    }
    return shares;
  }

  // Keeps the committed version: a retry, and the next delta, start from it.
  void publish(int64_t version, int64_t committed_version) {
    const std::lock_guard lock(mutex_);
    if (version == published_) return;
    auto shards = trainer().serving_shards();
    if (options_.store != nullptr) {
      // The engine of this process holds what it serves itself, so that two buffers are enough.
      sender().retire_before(version);
      options_.store->put(version, SharedPacking(shards, &shards->parameters));
    } else {
      sender().retire_before(committed_version);
    }
    sender().publish(version,
                     shard_tensors(sender().manifest(), shards->parameters,
                                   owned_slices(sender().manifest(), joint_.table, options_.mesh,
                                                options_.rank)),
                     shards);
    published_ = version;
  }

  int data_rank() const { return options_.mesh.data_rank(options_.rank); }
  std::vector<const TokenRecord*> share_of(std::span<const TokenRecord* const> batch) const {
    return share_records(batch, data_rank(), options_.mesh.num_data());
  }
  const TokenRecords& records() const {
    if (!records_) {
      fail(ErrorCode::kFailedPrecondition, "trainer {} has no records: algorithm.loss is not sft",
           options_.rank);
    }
    return *records_;
  }
  const TokenRecord& train_record(int64_t index) const {
    const auto& train = records().train;
    if (index < 0 || index >= std::ssize(train)) {
      fail(ErrorCode::kInvalidArgument, "trainer {} has {} records; number {} was asked for",
           options_.rank, train.size(), index);
    }
    return train[static_cast<size_t>(index)];
  }
  nibble::Trainer& trainer() {
    if (!trainer_)
      fail(ErrorCode::kFailedPrecondition, "trainer {} has not started", options_.rank);
    return *trainer_;
  }
  WeightSender& sender() {
    trainer();  // the two are made together
    return *sender_;
  }
  std::string name(const char* place) const {
    return fmt::format("trainer/{}.{}", options_.rank, place);
  }
  std::shared_ptr<EngineLink> engine_link(int engine) {
    const std::lock_guard lock(mutex_);
    const auto found = engines_.find(engine);
    if (found == engines_.end()) {
      fail(ErrorCode::kFailedPrecondition, "trainer {} has not met engine {}", options_.rank,
           engine);
    }
    return found->second;
  }
  SyncPlan make_sync_plan(int64_t epoch, int engine, std::vector<std::string> membership) {
    const Manifest& manifest = sender().manifest();
    const Layout senders = trainer_layout(manifest, joint_.table, options_.mesh);
    const auto destination =
        engine_slices(manifest, joint_.table, options_.engine, engine % options_.engine.world);
    const TransferSizes sizes = options_.gpu != nullptr ? kGpuTransfers : TransferSizes{};
    return make_plan({manifest, senders, destination, epoch, membership, sizes});
  }

  const TrainerServiceOptions options_;
  const Logger log_;
  const kernels::Serial serial_;
  std::optional<TokenRecords> records_;  // set by Start, like the next seven
  std::unique_ptr<const kernels::WeightKernels> kernels_;
  std::unique_ptr<ProcessGroup> group_;
  std::unique_ptr<ProcessGroup> device_group_;  // moves bytes of the GPU
  std::unique_ptr<MeshGroups> mesh_groups_;
  std::unique_ptr<nibble::Trainer> trainer_;  // lives on thread_
  JointParameters joint_;                     // what is published
  std::unique_ptr<WeightSender> sender_;
  SnapshotSlot snapshots_;
  std::mutex mutex_;
  std::map<int, std::shared_ptr<EngineLink>> engines_;  // guarded by mutex_; shared: with transfers
  int64_t published_ = 0;                               // guarded by mutex_
  TaskThread thread_;                                   // last member
};

TrainerService::TrainerService(TrainerServiceOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
TrainerService::~TrainerService() = default;
grpc::Service& TrainerService::service() { return *impl_; }

}  // namespace nibble
