// RolloutClient of worker_client.h.
#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "coordinator/group_codec.h"
#include "coordinator/worker_call.h"
#include "coordinator/worker_client.h"
#include "coordinator/worker_codec.h"
#include "core/base/fail.h"
#include "core/rpc/channel.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {

using std::chrono::milliseconds;

struct RolloutClient::Stub {
  explicit Stub(const std::string& address) : stub(v1::Rollout::NewStub(make_channel(address))) {}
  std::unique_ptr<v1::Rollout::Stub> stub;
  OpenCalls calls;
};

RolloutClient::RolloutClient(const Member& member)
    : member_(member), stub_(std::make_unique<Stub>(member.address)) {}
RolloutClient::~RolloutClient() = default;

void RolloutClient::give_up() { stub_->calls.cancel(); }

void RolloutClient::start(const MeetingPoint& at, milliseconds timeout) {
  v1::StartRolloutRequest request;
  encode(at, *request.mutable_ranks());
  v1::StartRolloutResponse response;
  retry_connecting([&] { NIBBLE_CALL(Start, timeout, request, response); });
}

int64_t GroupResult::num_scored() const {
  return std::count_if(samples.begin(), samples.end(),
                       [](const SampleResult& sample) { return sample.error.empty(); });
}

EngineFigures& EngineFigures::operator+=(const EngineFigures& other) {
  generate_ms += other.generate_ms;
  reward_ms += other.reward_ms;
  draft_ms += other.draft_ms;
  prefill_tokens += other.prefill_tokens;
  guessed_tokens += other.guessed_tokens;
  accepted_tokens += other.accepted_tokens;
  cached_prompt_tokens += other.cached_prompt_tokens;
  preemptions += other.preemptions;
  return *this;
}

void RolloutClient::submit(const std::vector<PromptTask>& prompts, const DrawSettings& settings,
                           milliseconds timeout) {
  v1::SubmitRequest request;
  request.set_weight_version(settings.weight_version);
  for (const PromptTask& prompt : prompts) {
    v1::Prompt& out = *request.add_prompts();
    out.set_prompt_id(prompt.prompt_id);
    out.set_content_json(prompt.content_json);
    out.set_label_json(prompt.label_json);
    out.set_attempt(prompt.attempt);
  }
  request.set_samples_per_prompt(static_cast<int32_t>(settings.samples_per_prompt));
  request.set_evaluation(settings.evaluation);
  request.set_seed(settings.seed);
  request.set_temperature(settings.temperature);
  request.set_top_p(settings.top_p);
  request.set_top_k(static_cast<int32_t>(settings.top_k));
  request.set_max_new_tokens(settings.max_new_tokens);
  v1::Empty response;
  NIBBLE_CALL(Submit, timeout, request, response);
}

CollectResult RolloutClient::collect(milliseconds wait, milliseconds timeout) {
  v1::CollectRequest request;
  request.set_wait_ms(wait.count());
  v1::CollectResponse response;
  NIBBLE_CALL(Collect, wait + timeout, request, response);
  CollectResult result{
      {},
      {response.generate_ms(), response.reward_ms(), response.draft_ms(), response.prefill_tokens(),
       response.guessed_tokens(), response.accepted_tokens(), response.cached_prompt_tokens(),
       response.preemptions()}};
  for (const v1::GroupSummary& group : response.groups()) {
    result.groups.push_back(decode_group(group, member_.address));
  }
  return result;
}

void RolloutClient::release(const std::vector<uint64_t>& prompt_ids, milliseconds timeout) {
  v1::ReleaseRequest request;
  request.mutable_prompt_ids()->Add(prompt_ids.begin(), prompt_ids.end());
  v1::Empty response;
  NIBBLE_CALL(Release, timeout, request, response);
}

std::vector<std::string> RolloutClient::fetch_group(uint64_t prompt_id, milliseconds timeout) {
  v1::FetchSamplesRequest request;
  request.add_prompt_ids(prompt_id);
  std::vector<std::string> parts;
  call_rpc("FetchSamples", fmt::format("{} ({})", member_.id, member_.address), timeout,
           [&](grpc::ClientContext& context) {
             const OpenCalls::Scope open(stub_->calls, context);
             const auto reader = stub_->stub->FetchSamples(&context, request);
             v1::SampleGroupMessage message;
             while (reader->Read(&message)) parts.push_back(message.SerializeAsString());
             return reader->Finish();
           });
  return parts;
}

void RolloutClient::restore_group(const std::vector<std::string>& parts, milliseconds timeout) {
  call_rpc("Restore", fmt::format("{} ({})", member_.id, member_.address), timeout,
           [&](grpc::ClientContext& context) {
             const OpenCalls::Scope open(stub_->calls, context);
             v1::Empty response;
             const auto writer = stub_->stub->Restore(&context, &response);
             v1::SampleGroupMessage message;
             for (const std::string& part : parts) {
               NIBBLE_CHECK(message.ParseFromString(part), "a saved sample is damaged");
               if (!writer->Write(message)) break;  // Finish() says why
             }
             writer->WritesDone();
             return writer->Finish();
           });
}

void RolloutClient::join_trainers(const MeetingPoint& at, int num_trainers) {
  v1::JoinTrainersRequest request;
  encode(at, *request.mutable_rendezvous());
  request.set_num_trainers(num_trainers);
  v1::Empty response;
  NIBBLE_CALL(JoinTrainers, with_margin(at.timeout), request, response);
}

void RolloutClient::join_peer(const MeetingPoint& at, bool sends) {
  v1::JoinPeerRequest request;
  encode(at, *request.mutable_rendezvous());
  request.set_sends(sends);
  v1::Empty response;
  NIBBLE_CALL(JoinPeer, with_margin(at.timeout), request, response);
}

EngineStatus RolloutClient::status(milliseconds timeout) {
  v1::EngineStatus response;
  NIBBLE_CALL(Status, timeout, v1::Empty(), response);
  return {response.state(),         response.served_version(),        response.last_failure(),
          response.epoch(),         response.transaction().version(), response.arrived_bytes(),
          response.expected_bytes()};
}

PlanAnswer RolloutClient::plan(int64_t epoch, const std::vector<std::string>& membership,
                               WeightSource source, milliseconds timeout) {
  v1::PlanResponse response;
  v1::PlanRequest request = plan_request(epoch, membership);
  request.set_source(encode(source));
  NIBBLE_CALL(Plan, timeout, request, response);
  return decode_plan(response);
}

void RolloutClient::reserve(const PublicationId& publication,
                            const std::vector<std::string>& membership, WeightSource source,
                            milliseconds timeout) {
  v1::ReserveRequest request;
  encode(publication, *request.mutable_transaction());
  add_membership(membership, request);
  request.set_source(encode(source));
  v1::ReserveResponse response;
  NIBBLE_CALL(Reserve, timeout, request, response);
}

double RolloutClient::receive_weights(const PublicationId& publication, WeightSource source,
                                      milliseconds timeout) {
  v1::ReceiveWeightsRequest request;
  encode(publication, *request.mutable_transaction());
  request.set_deadline_ms(timeout.count());
  request.set_source(encode(source));
  v1::ReceiveWeightsResponse response;
  NIBBLE_CALL(ReceiveWeights, with_margin(timeout), request, response);
  return response.wire_ms();
}

SendAnswer RolloutClient::send_weights(const PublicationId& publication,
                                       const std::vector<std::string>& membership,
                                       milliseconds timeout) {
  v1::SendWeightsRequest request;
  encode(publication, *request.mutable_transaction());
  add_membership(membership, request);
  request.set_deadline_ms(timeout.count());
  v1::SendWeightsResponse response;
  NIBBLE_CALL(SendWeights, with_margin(timeout), request, response);
  return decode_sent(response);
}

void RolloutClient::prepare(const PublicationId& publication,
                            const std::vector<std::string>& reports, milliseconds timeout) {
  v1::PrepareRequest request;
  encode(publication, *request.mutable_transaction());
  for (const std::string& report : reports) {
    NIBBLE_CHECK(request.add_reports()->ParseFromString(report), "a sender's report is damaged");
  }
  v1::Empty response;
  NIBBLE_CALL(Prepare, timeout, request, response);
}

double RolloutClient::commit(const PublicationId& publication, milliseconds timeout) {
  v1::CommitRequest request;
  encode(publication, *request.mutable_transaction());
  v1::CommitResponse response;
  NIBBLE_CALL(Commit, timeout, request, response);
  return response.pause_ms();
}

void RolloutClient::abort(const PublicationId& publication, const std::string& reason,
                          milliseconds timeout) {
  v1::AbortRequest request;
  encode(publication, *request.mutable_transaction());
  request.set_reason(reason);
  v1::Empty response;
  NIBBLE_CALL(Abort, timeout, request, response);
}

}  // namespace nibble
