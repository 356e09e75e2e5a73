#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "coordinator/worker_client.h"

namespace nibble::v1 {
class PlanRequest;
class PlanResponse;
class Rendezvous;
class SendWeightsResponse;
class Transaction;
enum Source : int;
}  // namespace nibble::v1

namespace nibble {

// What calls to workers carry, as messages.

void encode(const MeetingPoint& at, v1::Rendezvous& message);
void encode(const PublicationId& publication, v1::Transaction& message);
v1::Source encode(WeightSource source);
v1::PlanRequest plan_request(int64_t epoch, const std::vector<std::string>& membership);
PlanAnswer decode_plan(const v1::PlanResponse& response);
SendAnswer decode_sent(const v1::SendWeightsResponse& response);

template <typename Request>
void add_membership(const std::vector<std::string>& membership, Request& request) {
  for (const std::string& name : membership) request.add_membership(name);
}

/// A peer must have time to fail by its own deadline and say why.
inline std::chrono::milliseconds with_margin(std::chrono::milliseconds timeout) {
  return timeout + std::chrono::milliseconds(5'000);
}

/// A worker's first call: under load its connection may take more than one attempt. Few and short,
/// so that a worker that is gone is still reported at once.
void retry_connecting(const std::function<void()>& call);

}  // namespace nibble
