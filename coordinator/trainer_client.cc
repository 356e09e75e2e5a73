// TrainerClient of worker_client.h.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "coordinator/worker_call.h"
#include "coordinator/worker_client.h"
#include "coordinator/worker_codec.h"
#include "core/base/fail.h"
#include "core/rpc/channel.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {

using std::chrono::milliseconds;

struct TrainerClient::Stub {
  explicit Stub(const std::string& address) : stub(v1::Trainer::NewStub(make_channel(address))) {}
  std::unique_ptr<v1::Trainer::Stub> stub;
  OpenCalls calls;
};

TrainerClient::TrainerClient(const Member& member)
    : member_(member), stub_(std::make_unique<Stub>(member.address)) {}
TrainerClient::~TrainerClient() = default;

void TrainerClient::give_up() { stub_->calls.cancel(); }

void GuardReport::add(const std::vector<Suspect>& others) {
  constexpr size_t kMost = 4;  // as of one rank
  suspects.insert(suspects.end(), others.begin(), others.end());
  std::stable_sort(suspects.begin(), suspects.end(), [](const Suspect& a, const Suspect& b) {
    return std::pair(!a.is_finite, a.measure) > std::pair(!b.is_finite, b.measure);
  });
  if (!suspects.empty() && !suspects[0].is_finite) {
    std::erase_if(suspects, [](const Suspect& suspect) { return suspect.is_finite; });
  }
  if (suspects.size() > kMost) suspects.resize(kMost);
}

std::string GuardReport::text() const {
  std::string out = limit > 0.0 ? fmt::format("{} is {:.4g}, above {:.4g}", watch, value, limit)
                                : fmt::format("{}: {:.4g}", watch, value);
  std::string names;
  for (const Suspect& suspect : suspects) {
    names += fmt::format("{}prompt {} sample {} (", names.empty() ? "" : ", ", suspect.prompt_id,
                         suspect.sample_index);
    if (!suspect.is_finite) {
      names += "not finite)";
    } else if (watch == "kl") {
      names += fmt::format("KL {:.3g} a token)", suspect.measure);
    } else if (watch == "grad_norm") {
      names += fmt::format("|d loss / d log p| {:.3g})", suspect.measure);
    } else {
      names += fmt::format("gap {:.3g})", suspect.log_prob_diff);
    }
  }
  return names.empty() ? out : out + "; look at " + names;
}

int64_t TrainerClient::start(const MeetingPoint& at, milliseconds timeout) {
  v1::StartTrainerRequest request;
  encode(at, *request.mutable_rendezvous());
  v1::StartTrainerResponse response;
  retry_connecting([&] { NIBBLE_CALL(Start, timeout, request, response); });
  return response.train_records();
}

CheckpointStart TrainerClient::load(const std::string& checkpoint, milliseconds timeout) {
  v1::LoadRequest request;
  request.set_checkpoint(checkpoint);
  v1::LoadResponse response;
  NIBBLE_CALL(Load, timeout, request, response);
  return {response.step(), response.rollout_state()};
}

TrainResult TrainerClient::train(int64_t step, const std::vector<GroupSource>& groups,
                                 milliseconds timeout) {
  v1::TrainRequest request;
  request.set_step(step);
  for (const GroupSource& group : groups) {
    v1::GroupSource& out = *request.add_groups();
    out.set_prompt_id(group.prompt_id);
    out.set_engine_address(group.engine_address);
    out.set_computed_tokens(group.computed_tokens);
  }
  v1::TrainResponse response;
  NIBBLE_CALL(Train, timeout, request, response);
  TrainResult result{{response.metrics().begin(), response.metrics().end()}, {}};
  if (response.has_guard()) {
    const v1::GuardReport& guard = response.guard();
    result.guard = {guard.watch(), guard.action(), guard.value(), guard.limit(), {}};
    for (const v1::SuspectSample& suspect : guard.suspects()) {
      result.guard->suspects.push_back({suspect.prompt_id(), suspect.sample_index(),
                                        suspect.log_prob_diff(), suspect.measure(),
                                        suspect.is_finite()});
    }
  }
  return result;
}

std::map<std::string, double> TrainerClient::train_records(int64_t step,
                                                           const std::vector<int64_t>& records,
                                                           milliseconds timeout) {
  v1::TrainRecordsRequest request;
  request.set_step(step);
  request.mutable_records()->Add(records.begin(), records.end());
  v1::TrainResponse response;
  NIBBLE_CALL(TrainRecords, timeout, request, response);
  return {response.metrics().begin(), response.metrics().end()};
}

RecordsLoss TrainerClient::evaluate_records(int64_t step, milliseconds timeout) {
  v1::EvaluateRecordsRequest request;
  request.set_step(step);
  v1::EvaluateRecordsResponse response;
  NIBBLE_CALL(EvaluateRecords, timeout, request, response);
  return {response.loss(), response.tokens(), response.records()};
}

void TrainerClient::snapshot(const std::string& directory, int64_t step, int64_t version,
                             const std::string& rollout_state, milliseconds timeout) {
  v1::SnapshotRequest request;
  request.set_directory(directory);
  request.set_step(step);
  request.set_weight_version(version);
  request.set_rollout_state(rollout_state);
  v1::Empty response;
  NIBBLE_CALL(Snapshot, timeout, request, response);
}

void TrainerClient::write_snapshot(int64_t step, milliseconds timeout) {
  v1::WriteSnapshotRequest request;
  request.set_step(step);
  v1::Empty response;
  NIBBLE_CALL(WriteSnapshot, timeout, request, response);
}

void TrainerClient::finish_snapshot(int64_t step, bool publish, milliseconds timeout) {
  v1::FinishSnapshotRequest request;
  request.set_step(step);
  request.set_publish(publish);
  v1::Empty response;
  NIBBLE_CALL(FinishSnapshot, timeout, request, response);
}

void TrainerClient::join_engine(int engine, const MeetingPoint& at) {
  v1::JoinEngineRequest request;
  request.set_engine(engine);
  encode(at, *request.mutable_rendezvous());
  v1::Empty response;
  NIBBLE_CALL(JoinEngine, with_margin(at.timeout), request, response);
}

PlanAnswer TrainerClient::plan(int64_t epoch, int engine,
                               const std::vector<std::string>& membership, milliseconds timeout) {
  v1::PlanResponse response;
  v1::PlanRequest request = plan_request(epoch, membership);
  request.set_engine(engine);
  NIBBLE_CALL(Plan, timeout, request, response);
  return decode_plan(response);
}

SendAnswer TrainerClient::send_weights(const PublicationId& publication, int engine,
                                       const std::vector<std::string>& membership,
                                       int64_t committed_version, milliseconds timeout) {
  v1::SendWeightsRequest request;
  encode(publication, *request.mutable_transaction());
  request.set_engine(engine);
  request.set_committed_version(committed_version);
  add_membership(membership, request);
  request.set_deadline_ms(timeout.count());
  v1::SendWeightsResponse response;
  NIBBLE_CALL(SendWeights, with_margin(timeout), request, response);
  return decode_sent(response);
}

}  // namespace nibble
