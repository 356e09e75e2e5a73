#include "cli/coordinator_client.h"

#include <arpa/inet.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {

using std::chrono::milliseconds;

namespace {

WorkerRole decode_role(v1::Role role) {
  switch (role) {
    case v1::ROLE_TRAINER:
      return WorkerRole::kTrainer;
    case v1::ROLE_ROLLOUT:
      return WorkerRole::kRollout;
    case v1::ROLE_BOTH:
      return WorkerRole::kBoth;
    default:
      fail(ErrorCode::kUnimplemented,
           "the coordinator gives role {}, which this nibble does not know: run the same version "
           "everywhere",
           static_cast<int>(role));
  }
}

std::optional<EngineStanding> decode_standing(v1::Standing standing) {
  switch (standing) {
    case v1::STANDING_STARTING:
      return EngineStanding::kStarting;
    case v1::STANDING_SERVING:
      return EngineStanding::kServing;
    case v1::STANDING_FENCED:
      return EngineStanding::kFenced;
    default:
      return std::nullopt;
  }
}

WorkerView decode_worker(const v1::WorkerStatus& status) {
  WorkerView view;
  view.member.role = decode_role(status.role());
  view.member.id = status.worker_id();
  view.member.address = status.address();
  view.member.host = status.host();
  view.member.pid = status.pid();
  view.heartbeat_age = milliseconds(status.heartbeat_age_ms());
  view.is_up = status.is_up();
  view.standing = decode_standing(status.standing());
  if (status.has_transfer()) {
    view.transfer = {status.transfer().version(), status.transfer().source(),
                     milliseconds(status.transfer().age_ms())};
  }
  return view;
}

}  // namespace

struct CoordinatorClient::Stub {
  std::unique_ptr<v1::Coordinator::Stub> stub;
};

CoordinatorClient::CoordinatorClient(std::string address, const ChannelOptions& options)
    : address_(std::move(address)),
      stub_(
          std::make_unique<Stub>(Stub{v1::Coordinator::NewStub(make_channel(address_, options))})) {
}
CoordinatorClient::~CoordinatorClient() = default;

Assignment CoordinatorClient::join(int service_port, int rendezvous_port) {
  v1::RegisterRequest request;
  request.set_address(fmt::format("127.0.0.1:{}", service_port));
  request.set_host("127.0.0.1");
  request.set_rendezvous_port(rendezvous_port);
  request.set_pid(::getpid());
  v1::RegisterResponse response;
  try {
    call_rpc("Register", "coordinator " + address_, milliseconds(30'000),
             [&](grpc::ClientContext& context) {
               return stub_->stub->Register(&context, request, &response);
             });
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnavailable) throw;
    fail(error.code(),
         "no coordinator answers at {}; start `nibble coordinator JOB.yaml --port PORT` first, or "
         "correct --join",
         address_);
  }
  return {response.worker_id(), decode_role(response.role()), response.index(),
          response.epoch(),     response.config_yaml(),       milliseconds(response.lease_ms())};
}

void CoordinatorClient::keep_alive_until_stop(const Assignment& assignment) {
  const milliseconds interval =
      std::clamp(assignment.lease / 4, milliseconds(50), milliseconds(500));
  auto answered = SteadyClock::now();
  std::mutex mutex;
  std::condition_variable never;
  v1::HeartbeatRequest request;
  request.set_worker_id(assignment.worker_id);
  request.set_epoch(assignment.epoch);
  while (true) {
    try {
      v1::HeartbeatResponse response;
      call_rpc("Heartbeat", "coordinator " + address_, interval, [&](grpc::ClientContext& context) {
        return stub_->stub->Heartbeat(&context, request, &response);
      });
      if (response.stop()) return;
      answered = SteadyClock::now();
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kFailedPrecondition) throw;
      if (SteadyClock::now() - answered > assignment.lease) {
        fail(ErrorCode::kUnavailable, "the coordinator at {} has not answered for {} ms: {}",
             address_, assignment.lease.count(), error.what());
      }
    }
    std::unique_lock lock(mutex);
    never.wait_for(lock, interval);
  }
}

JobView CoordinatorClient::status(milliseconds timeout) {
  v1::JobStatus response;
  call_rpc("Status", "coordinator " + address_, timeout, [&](grpc::ClientContext& context) {
    return stub_->stub->Status(&context, v1::Empty(), &response);
  });
  JobView job{response.coordinator_id(),
              response.epoch(),
              response.version(),
              milliseconds(response.lease_ms()),
              {},
              {}};
  for (const v1::WorkerStatus& status : response.workers()) {
    job.workers.push_back(decode_worker(status));
  }
  for (const v1::ExternalEngineStatus& status : response.external_engines()) {
    job.external_engines.push_back({{status.name(), status.host(), status.pid(),
                                     status.served_version(), status.last_failure()},
                                    milliseconds(status.heartbeat_age_ms())});
  }
  return job;
}

PortReservation::PortReservation() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  const int reuse = 1;
  if (fd_ < 0 || ::setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) != 0 ||
      ::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    fail(ErrorCode::kResourceExhausted, "no free port on the loopback interface: {}",
         std::strerror(errno));
  }
  port_ = ntohs(address.sin_port);
}

PortReservation::~PortReservation() {
  if (fd_ >= 0) ::close(fd_);
}

int PortReservation::release() {
  ::close(std::exchange(fd_, -1));
  return port_;
}

}  // namespace nibble
