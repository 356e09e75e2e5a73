#include "coordinator/worker_codec.h"

#include "proto/nibble.pb.h"

#include <thread>

#include "core/base/error.h"

namespace nibble {

void encode(const MeetingPoint& at, v1::Rendezvous& message) {
  message.set_host(at.host);
  message.set_port(at.port);
  message.set_group_name(at.group_name);
  message.set_timeout_ms(at.timeout.count());
}

void encode(const PublicationId& publication, v1::Transaction& message) {
  message.set_job(publication.job);
  message.set_epoch(publication.epoch);
  message.set_version(publication.version);
  message.set_plan_digest(publication.plan_digest);
  message.set_base_version(publication.base_version);
  message.set_omits_frozen(publication.omits_frozen);
}

SendAnswer decode_sent(const v1::SendWeightsResponse& response) {
  return {response.report().SerializeAsString(), response.bytes(), response.wire_ms()};
}

v1::Source encode(WeightSource source) {
  return source == WeightSource::kPeer ? v1::SOURCE_PEER : v1::SOURCE_TRAINERS;
}

v1::PlanRequest plan_request(int64_t epoch, const std::vector<std::string>& membership) {
  v1::PlanRequest request;
  request.set_epoch(epoch);
  add_membership(membership, request);
  return request;
}

void retry_connecting(const std::function<void()>& call) {
  constexpr int kAttempts = 20;
  for (int attempt = 1;; ++attempt) {
    try {
      return call();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnavailable || attempt == kAttempts) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
}

PlanAnswer decode_plan(const v1::PlanResponse& response) {
  return {response.plan_digest(), response.bytes(), response.manifest_text(),
          response.served_version(), response.has_frozen()};
}

}  // namespace nibble
