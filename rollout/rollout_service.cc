#include "rollout/rollout_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "core/base/log.h"
#include "core/checkpoint/hf_directory.h"
#include "core/data/sample_codec.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"
#include "rollout/engine_setup.h"
#include "rollout/job_engine.h"
#include "rollout/rollout_codec.h"
#include "rollout/weight_links.h"
#include "weight_sync/sender.h"
#include "weight_sync/sync_codec.h"
#include "weight_sync/weight_readers.h"
#include "weight_sync/weight_stream_codec.h"

namespace nibble {
namespace {

Deadline deadline_of(const grpc::ServerContext& context) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      context.deadline() - std::chrono::system_clock::now());
  return Deadline::after(std::min(left, std::chrono::milliseconds(86'400'000)));
}

// Of an external engine's reading, so that one that hangs does not hold its place for ever.
constexpr auto kLongestRead = std::chrono::hours(1);

// So that a coordinator that is gone does not keep the engine at work.
constexpr int64_t kLongestCollectMs = 1'000;

constexpr auto kAbortTimeout = std::chrono::milliseconds(10'000);

using Whom = WeightLinks::Whom;

// A receiver that fails tells its senders, which would wait for their deadline; one that refuses
// has nothing to do with what is on the way.
template <typename Receive>
void end_way_on_failure(Transport* way, Receive receive) {
  try {
    receive();
  } catch (const Error& error) {
    if (way != nullptr && error.code() != ErrorCode::kFailedPrecondition) way->abort();
    throw;
  }
}

// Until the call that reads is over.
struct LoanWatch {
  WeightReader& reader;
  ~LoanWatch() { reader.on_loan_end({}); }
};

}  // namespace

class RolloutService::Impl final : public v1::Rollout::Service {
 public:
  explicit Impl(RolloutServiceOptions options)
      : options_(std::move(options)),
        log_(get_logger(fmt::format("rollout/{}", options_.engine))),
        links_(options_.engine, options_.worker.gpu != nullptr, options_.gpu_wire),
        engine_(options_.worker, options_.engine) {
    if (options_.worker.gpu != nullptr) {
      kernels_ = ops::make_cuda_weight_kernels();
    } else {
      kernels_ = std::make_unique<kernels::CpuWeightKernels>(serial_);
    }
  }

  grpc::Status Start(grpc::ServerContext*, const v1::StartRolloutRequest* request,
                     v1::StartRolloutResponse*) override {
    return run_rpc([&] {
      engine_.start(decode_rendezvous(request->ranks()));
      const ParameterTable& model = engine_.spec().table;
      joint_ = job_parameters(options_.worker, engine_.spec());
      Manifest manifest = make_manifest(joint_.table, joint_.plan, options_.worker.grid);
      destination_ = engine_slices(manifest, joint_.table, engine_.mesh(), engine_.rank());
      ReceiverOptions receiving{own_sender(), {}, {}};
      if (engine_.has_ranks()) receiving.destination = destination_;
      if (options_.worker.in_place) receiving.release_engine = [this] { release_weights(); };
      receiver_ =
          std::make_unique<WeightReceiver>(options_.job, joint_.table, joint_.plan,
                                           std::move(manifest), *kernels_, std::move(receiving));
      model_manifest_ = make_manifest(model, options_.worker.plan, options_.worker.grid);
      readers_ = std::make_unique<WeightReaders>(model_manifest_, options_.external_engines);
      log_->info("ready model={} parameters={}", options_.worker.model.string(), model.size());
    });
  }

  grpc::Status Submit(grpc::ServerContext*, const v1::SubmitRequest* request, v1::Empty*) override {
    return run_rpc([&] {
      const RolloutJob job = decode_job(*request);
      engine_.thread().run_within([&] { engine_.worker().submit(job); });
    });
  }

  grpc::Status Collect(grpc::ServerContext*, const v1::CollectRequest* request,
                       v1::CollectResponse* response) override {
    return run_rpc([&] {
      const auto wait =
          std::chrono::milliseconds(std::clamp<int64_t>(request->wait_ms(), 0, kLongestCollectMs));
      TaskThread& thread = engine_.thread();
      RolloutWorker& worker = engine_.worker();
      DrawnGroups drawn = thread.run([&] {
        failpoint(name("collect"));
        return worker.advance(Deadline::after(wait), thread);
      });
      encode_outcome(worker.finish(std::move(drawn)), *response);
    });
  }

  grpc::Status Release(grpc::ServerContext*, const v1::ReleaseRequest* request,
                       v1::Empty*) override {
    return run_rpc([&] {
      const std::vector<uint64_t> ids(request->prompt_ids().begin(), request->prompt_ids().end());
      engine_.thread().run_within([&] { engine_.worker().release(ids); });
    });
  }

  grpc::Status FetchSamples(grpc::ServerContext*, const v1::FetchSamplesRequest* request,
                            grpc::ServerWriter<v1::SampleGroupMessage>* writer) override {
    return run_rpc([&] {
      const std::vector<uint64_t> ids(request->prompt_ids().begin(), request->prompt_ids().end());
      for (const KeptGroup& group : engine_.worker().kept().fetch(ids)) {
        encode_group(*group,
                     [&](const v1::SampleGroupMessage& part) { return writer->Write(part); });
      }
    });
  }

  grpc::Status Restore(grpc::ServerContext*, grpc::ServerReader<v1::SampleGroupMessage>* reader,
                       v1::Empty*) override {
    return run_rpc([&] {
      std::vector<SampleGroup> groups;
      v1::SampleGroupMessage part;
      while (reader->Read(&part)) {
        decode_group_part(part, groups);
        if (groups.size() > 1) fail(ErrorCode::kInvalidArgument, "more than one group");
      }
      if (groups.empty()) fail(ErrorCode::kInvalidArgument, "no group");
      engine_.worker().keep(std::move(groups[0]));
    });
  }

  grpc::Status JoinTrainers(grpc::ServerContext*, const v1::JoinTrainersRequest* request,
                            v1::Empty*) override {
    return run_rpc([&] {
      failpoint(name("join"));
      // Behind the trainer ranks; at its own where this process is one of them.
      const int rank = own_sender().value_or(request->num_trainers());
      const int world = request->num_trainers() + (own_sender() ? 0 : 1);
      if (world == 1) return;  // there is nobody else
      links_.join(Whom::kTrainers, decode_rendezvous(request->rendezvous()), rank, world, rank);
    });
  }

  grpc::Status JoinPeer(grpc::ServerContext*, const v1::JoinPeerRequest* request,
                        v1::Empty*) override {
    return run_rpc([&] {
      failpoint(name("join_peer"));
      constexpr int kReceiver = 1;
      links_.join(Whom::kPeer, decode_rendezvous(request->rendezvous()),
                  request->sends() ? 0 : kReceiver, 2, kReceiver);
    });
  }

  grpc::Status Status(grpc::ServerContext*, const v1::Empty*, v1::EngineStatus* response) override {
    return run_rpc([&] {
      const ReceiverStatus status = receiver().status();
      response->set_state(std::string(receiver_state_name(status.state)));
      response->set_served_version(status.served_version);
      response->set_epoch(status.epoch);
      if (status.transaction) {
        encode_transaction(*status.transaction, *response->mutable_transaction());
      }
      response->set_arrived_bytes(status.arrived_bytes);
      response->set_expected_bytes(status.expected_bytes);
      response->set_last_failure(status.last_failure);
    });
  }

  grpc::Status SendWeights(grpc::ServerContext*, const v1::SendWeightsRequest* request,
                           v1::SendWeightsResponse* response) override {
    return run_rpc([&] {
      failpoint(name("send"));
      const Transaction transaction = decode_transaction(request->transaction());
      const auto peer = links_.at(Whom::kPeer);
      const WeightLinks::Sending sending(links_, peer, transaction.version);
      const ServedWeights served = receiver().served();
      if (served.weights == nullptr || served.version != transaction.version) {
        fail(ErrorCode::kFailedPrecondition, "engine {} serves version {}, not {}", options_.engine,
             served.version, transaction.version);
      }
      const SyncPlan plan = make_sync_plan(
          transaction.epoch, {request->membership().begin(), request->membership().end()},
          v1::SOURCE_PEER);
      WeightSender sender(0, receiver().manifest(), *kernels_);
      sender.publish(
          served.version,
          shard_tensors(receiver().manifest(), served.weights->parameters(), destination_),
          served.weights);
      const Stopwatch clock;
      encode_report(sender.move(transaction, plan, *peer->transport,
                                Deadline::after(std::chrono::milliseconds(request->deadline_ms()))),
                    *response->mutable_report());
      response->set_wire_ms(clock.elapsed_ms());
      response->set_bytes(response->report().bytes());
    });
  }

  grpc::Status ReadWeights(grpc::ServerContext* context, const v1::ReadWeightsRequest* request,
                           grpc::ServerWriter<v1::WeightPart>* writer) override {
    grpc::Status status = run_rpc([&] {
      failpoint(name("read"));
      if (context->deadline() > std::chrono::system_clock::now() + kLongestRead) {
        fail(ErrorCode::kInvalidArgument, "ReadWeights needs a deadline of an hour at most");
      }
      ops::bind_cuda_thread();
      const auto reader = readers().open(receiver().served(), request->newer_than());
      // A reader that stops reading must not keep its place and thread.
      reader->on_loan_end([context] { context->TryCancel(); });
      const LoanWatch watch{*reader};
      log_->info("version={} is read by {}", reader->version(), context->peer());
      const Stopwatch clock;
      stream_weights(streamed_model(), model_manifest_, *reader, [&](const v1::WeightPart& part) {
        failpoint(name("read_part"));
        return writer->Write(part);
      });
      log_->info("version={} was read by {} ms={:.1f}", reader->version(), context->peer(),
                 clock.elapsed_ms());
    });
    if (!status.ok()) {
      log_->info("reading by {} ended: {}", context->peer(), status.error_message());
    }
    return status;
  }

  grpc::Status Plan(grpc::ServerContext*, const v1::PlanRequest* request,
                    v1::PlanResponse* response) override {
    return run_rpc([&] {
      const SyncPlan plan = make_sync_plan(
          request->epoch(), {request->membership().begin(), request->membership().end()},
          request->source());
      response->set_plan_digest(digest_bytes(plan.digest));
      const bool has_frozen = receiver().has_frozen();
      response->set_bytes(wire_bytes(plan, has_frozen));
      response->set_has_frozen(has_frozen);
      response->set_manifest_text(manifest_text(receiver().manifest()));
      response->set_served_version(receiver().served().version);
    });
  }

  grpc::Status Reserve(grpc::ServerContext* context, const v1::ReserveRequest* request,
                       v1::ReserveResponse* response) override {
    return run_rpc([&] {
      const Transaction transaction = decode_transaction(request->transaction());
      failpoint(name("reserve"));
      // A slow peer must not hold this engine up: one that still pulls a version before the served
      // one holds the buffer that the next one needs, and has to ask again.
      links_.end_sendings_before(receiver().served().version, deadline_of(*context));
      SyncPlan plan = make_sync_plan(transaction.epoch,
                                     {request->membership().begin(), request->membership().end()},
                                     request->source());
      response->set_shadow_bytes(wire_bytes(plan, transaction.omits_frozen));
      // The shadow is the buffer of the version before the served one.
      readers_->end_before(receiver().served().version);
      receiver().reserve(transaction, std::move(plan));
    });
  }

  grpc::Status ReceiveWeights(grpc::ServerContext*, const v1::ReceiveWeightsRequest* request,
                              v1::ReceiveWeightsResponse* response) override {
    return run_rpc([&] {
      const Transaction transaction = decode_transaction(request->transaction());
      const Deadline deadline = Deadline::after(std::chrono::milliseconds(request->deadline_ms()));
      failpoint(name("receive"));
      const Stopwatch clock;
      if (options_.store != nullptr && request->source() == v1::SOURCE_TRAINERS) {
        const auto others = options_.trainers.world > 1 ? links_.at(Whom::kTrainers) : nullptr;
        const auto way = others ? others->transport.get() : nullptr;
        const HeldPacking held = options_.store->take(transaction.version, deadline);
        end_way_on_failure(way, [&] { receiver().receive_held(transaction, held, way, deadline); });
      } else {
        const bool from_peer = request->source() == v1::SOURCE_PEER;
        const auto senders = links_.at(from_peer ? Whom::kPeer : Whom::kTrainers);
        Transport& way = *senders->transport;
        end_way_on_failure(&way, [&] { receiver().receive(transaction, way, deadline); });
      }
      failpoint(name("received"));
      response->set_wire_ms(clock.elapsed_ms());
      response->set_bytes(received_bytes(transaction));
    });
  }

  grpc::Status Prepare(grpc::ServerContext*, const v1::PrepareRequest* request,
                       v1::Empty*) override {
    return run_rpc([&] {
      failpoint(name("prepare"));
      const Transaction transaction = decode_transaction(request->transaction());
      std::vector<SenderReport> reports;
      for (const v1::SenderReport& report : request->reports()) {
        reports.push_back(decode_report(report));
      }
      receiver().verify(transaction, reports);
      receiver().prepare(transaction);
      failpoint(name("prepared"));
    });
  }

  grpc::Status Commit(grpc::ServerContext*, const v1::CommitRequest* request,
                      v1::CommitResponse* response) override {
    return run_rpc([&] {
      failpoint(name("commit"));
      const ServedWeights served = receiver().commit(decode_transaction(request->transaction()));
      const double pause_ms = engine_.swap(served);
      // A version may be read until the next publication needs its buffer. One that the trainer of
      // this process packed counts among the trainer's, which packs its next one earlier than that.
      if (own_sender()) readers_->end_before(served.version);
      response->set_pause_ms(pause_ms);
      log_->info("serves version={} pause_ms={:.3f}", served.version, pause_ms);
      failpoint(name("committed"));
    });
  }

  grpc::Status Abort(grpc::ServerContext*, const v1::AbortRequest* request, v1::Empty*) override {
    return run_rpc([&] {
      log_->warn("publication of version {} aborted: {}", request->transaction().version(),
                 request->reason());
      receiver().abort(decode_transaction(request->transaction()), Deadline::after(kAbortTimeout));
    });
  }

 private:
  // In place: the engine stops between two steps; a peer that pulls has to ask again.
  void release_weights() {
    const int64_t version = engine_.release_weights();
    readers_->end_before(version + 1);
    links_.end_sendings_before(version + 1, Deadline::after(kAbortTimeout));
  }
  WeightReceiver& receiver() {
    if (!receiver_) {
      fail(ErrorCode::kFailedPrecondition, "engine {} has not started", options_.engine);
    }
    return *receiver_;
  }
  WeightReaders& readers() {
    receiver();  // the two are made together
    return *readers_;
  }
  StreamedModel streamed_model() const {
    const Json model = read_hf_config(options_.worker.model);
    OrderedJson config = served_config(model, options_.worker.plan);
    if (options_.worker.lora) config[kLoraKey] = lora_shape_json(*options_.worker.lora);
    return {options_.job, config.dump(2) + "\n"};
  }
  std::string name(const char* place) const {
    return fmt::format("rollout/{}.{}", options_.engine, place);
  }
  // The sender of the plans that is in this process.
  std::optional<int> own_sender() const {
    if (options_.store == nullptr) return std::nullopt;
    return options_.store->rank();
  }
  int64_t wire_bytes(const SyncPlan& plan, bool omits_frozen) {
    int64_t bytes = 0;
    for (const Edge& edge : plan.edges) {
      if (own_sender() == edge.sender) continue;
      bytes += travelling_bytes(receiver().manifest(), edge, omits_frozen);
    }
    return bytes;
  }
  int64_t received_bytes(const Transaction& transaction) {
    const Manifest& manifest = receiver().manifest();
    std::vector<Slice> slices = destination_;
    std::erase_if(slices, [&](const Slice& slice) {
      return transaction.omits_frozen && manifest.at(slice.tensor).is_frozen;
    });
    return slices_bytes(manifest, slices);
  }
  SyncPlan make_sync_plan(int64_t epoch, std::vector<std::string> membership, v1::Source source) {
    const Manifest& manifest = receiver().manifest();
    const Layout senders = source == v1::SOURCE_PEER
                               ? Layout{{destination_}}
                               : trainer_layout(manifest, joint_.table, options_.trainers);
    const TransferSizes sizes = options_.worker.gpu != nullptr ? kGpuTransfers : TransferSizes{};
    return make_plan({manifest, senders, destination_, epoch, membership, sizes});
  }

  const RolloutServiceOptions options_;
  const Logger log_;
  const kernels::Serial serial_;
  std::unique_ptr<const kernels::WeightKernels> kernels_;
  JointParameters joint_;           // what is published; set by Start, like the next four
  Manifest model_manifest_;         // of the model alone: what others read
  std::vector<Slice> destination_;  // what this process serves
  std::unique_ptr<WeightReceiver> receiver_;
  std::unique_ptr<WeightReaders> readers_;
  WeightLinks links_;
  JobEngine engine_;  // last member
};

RolloutService::RolloutService(RolloutServiceOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
RolloutService::~RolloutService() = default;
grpc::Service& RolloutService::service() { return *impl_; }

}  // namespace nibble
