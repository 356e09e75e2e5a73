#include "coordinator/coordinator_service.h"

#include <grpcpp/grpcpp.h>

#include "core/base/log.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {
namespace {

v1::Role encode_role(WorkerRole role) {
  switch (role) {
    case WorkerRole::kTrainer:
      return v1::ROLE_TRAINER;
    case WorkerRole::kRollout:
      return v1::ROLE_ROLLOUT;
    case WorkerRole::kBoth:
      return v1::ROLE_BOTH;
  }
  return v1::ROLE_UNSPECIFIED;
}

v1::Standing encode_standing(EngineStanding standing) {
  switch (standing) {
    case EngineStanding::kStarting:
      return v1::STANDING_STARTING;
    case EngineStanding::kServing:
      return v1::STANDING_SERVING;
    case EngineStanding::kFenced:
      return v1::STANDING_FENCED;
  }
  return v1::STANDING_UNSPECIFIED;
}

void encode_note(const EngineNote& note, v1::WorkerStatus& status) {
  status.set_standing(encode_standing(note.standing));
  if (!note.transfer) return;
  v1::TransferStatus& transfer = *status.mutable_transfer();
  transfer.set_version(note.transfer->version);
  transfer.set_source(note.transfer->source);
  transfer.set_age_ms(std::chrono::duration_cast<std::chrono::milliseconds>(SteadyClock::now() -
                                                                            note.transfer->since)
                          .count());
}

void encode_view(const MemberView& view, v1::WorkerStatus& status) {
  status.set_worker_id(view.member.id);
  status.set_role(encode_role(view.member.role));
  status.set_address(view.member.address);
  status.set_host(view.member.host);
  status.set_pid(view.member.pid);
  status.set_heartbeat_age_ms(view.heartbeat_age.count());
  status.set_is_up(view.is_up);
}

void encode_external(const ExternalEngineView& view, v1::ExternalEngineStatus& status) {
  status.set_name(view.engine.name);
  status.set_host(view.engine.host);
  status.set_pid(view.engine.pid);
  status.set_served_version(view.engine.served_version);
  status.set_last_failure(view.engine.last_failure);
  status.set_heartbeat_age_ms(view.heartbeat_age.count());
}

}  // namespace

class CoordinatorService::Impl final : public v1::Coordinator::Service {
 public:
  Impl(Membership& membership, ExternalEngines& external, const EngineBoard& board,
       JobIdentity identity)
      : membership_(membership),
        external_(external),
        board_(board),
        identity_(std::move(identity)) {}

  grpc::Status Register(grpc::ServerContext*, const v1::RegisterRequest* request,
                        v1::RegisterResponse* response) override {
    return run_rpc([&] {
      Member candidate;
      candidate.address = request->address();
      candidate.host = request->host();
      candidate.rendezvous_port = request->rendezvous_port();
      candidate.pid = request->pid();
      const Member member = membership_.join(std::move(candidate));
      response->set_worker_id(member.id);
      response->set_role(encode_role(member.role));
      response->set_index(member.index);
      response->set_epoch(membership_.epoch());
      response->set_config_yaml(identity_.config_yaml);
      response->set_lease_ms(membership_.lease().count());
      get_logger("coordinator")
          ->debug("joined worker={} pid={} address={}", member.id, member.pid, member.address);
    });
  }

  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* response) override {
    return run_rpc([&] {
      membership_.renew(request->worker_id());
      response->set_stop(membership_.stopped());
    });
  }

  grpc::Status Follow(grpc::ServerContext*, const v1::FollowRequest* request,
                      v1::FollowResponse* response) override {
    return run_rpc([&] {
      external_.follow({request->name(), request->host(), request->pid(), request->served_version(),
                        request->last_failure()});
      const EngineBoard::State state = board_.read();
      response->set_job(identity_.name);
      response->set_version(state.version);
      for (const Member& member : membership_.engines()) {
        const auto engine = static_cast<size_t>(member.index);
        if (engine >= state.engines.size()) continue;
        if (state.engines[engine].standing != EngineStanding::kServing) continue;
        response->add_sources(member.address);
      }
      response->set_lease_ms(external_.lease().count());
      response->set_stop(membership_.stopped());
    });
  }

  grpc::Status Status(grpc::ServerContext*, const v1::Empty*, v1::JobStatus* response) override {
    return run_rpc([&] {
      const EngineBoard::State state = board_.read();
      response->set_coordinator_id(identity_.id);
      response->set_epoch(state.epoch);
      response->set_version(state.version);
      response->set_lease_ms(membership_.lease().count());
      for (const MemberView& view : membership_.views()) {
        v1::WorkerStatus& status = *response->add_workers();
        encode_view(view, status);
        const auto engine = static_cast<size_t>(view.member.index);
        if (view.member.role == WorkerRole::kTrainer || engine >= state.engines.size()) continue;
        encode_note(state.engines[engine], status);
      }
      for (const ExternalEngineView& view : external_.views()) {
        encode_external(view, *response->add_external_engines());
      }
    });
  }

 private:
  Membership& membership_;
  ExternalEngines& external_;
  const EngineBoard& board_;
  const JobIdentity identity_;
};

CoordinatorService::CoordinatorService(Membership& membership, ExternalEngines& external,
                                       const EngineBoard& board, JobIdentity identity)
    : impl_(std::make_unique<Impl>(membership, external, board, std::move(identity))) {}
CoordinatorService::~CoordinatorService() = default;
grpc::Service& CoordinatorService::service() { return *impl_; }

}  // namespace nibble
