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

}  // namespace

class CoordinatorService::Impl final : public v1::Coordinator::Service {
 public:
  Impl(Membership& membership, std::string config_yaml)
      : membership_(membership), config_yaml_(std::move(config_yaml)) {}

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
      response->set_config_yaml(config_yaml_);
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

 private:
  Membership& membership_;
  const std::string config_yaml_;
};

CoordinatorService::CoordinatorService(Membership& membership, std::string config_yaml)
    : impl_(std::make_unique<Impl>(membership, std::move(config_yaml))) {}
CoordinatorService::~CoordinatorService() = default;
grpc::Service& CoordinatorService::service() { return *impl_; }

}  // namespace nibble
