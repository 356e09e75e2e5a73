#include "coordinator/worker_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "coordinator/group_codec.h"
#include "core/base/fail.h"
#include "core/rpc/channel.h"
#include "core/rpc/open_calls.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;

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
}

template <typename Request>
void add_membership(const std::vector<std::string>& membership, Request& request) {
  for (const std::string& name : membership) request.add_membership(name);
}

template <typename Response>
PlanAnswer decode_plan(const Response& response) {
  return {response.plan_digest(), response.bytes(), response.manifest_text(),
          response.served_version()};
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

// A peer must have time to fail by its own deadline and say why.
milliseconds with_margin(milliseconds timeout) { return timeout + milliseconds(5'000); }

// A worker's first call: under load its connection may take more than one attempt. Few and short,
// so that a worker that is gone is still reported at once.
void retry_connecting(const std::function<void()>& call) {
  constexpr int kAttempts = 20;
  for (int attempt = 1;; ++attempt) {
    try {
      return call();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnavailable || attempt == kAttempts) throw;
      std::this_thread::sleep_for(milliseconds(100));
    }
  }
}

}  // namespace

// One unary call: METHOD of `stub` with `request` into `response`.
#define NIBBLE_CALL(method, timeout, request, response)                           \
  call_rpc(#method, fmt::format("{} ({})", member_.id, member_.address), timeout, \
           [&](grpc::ClientContext& context) {                                    \
             const OpenCalls::Scope open(stub_->calls, context);                  \
             return stub_->stub->method(&context, request, &(response));          \
           })

struct TrainerClient::Stub {
  explicit Stub(const std::string& address) : stub(v1::Trainer::NewStub(make_channel(address))) {}
  std::unique_ptr<v1::Trainer::Stub> stub;
  OpenCalls calls;
};

TrainerClient::TrainerClient(const Member& member)
    : member_(member), stub_(std::make_unique<Stub>(member.address)) {}
TrainerClient::~TrainerClient() = default;

void TrainerClient::give_up() { stub_->calls.cancel(); }

std::string GuardReport::text() const {
  std::string out = limit > 0.0 ? fmt::format("{} is {:.4g}, above {:.4g}", watch, value, limit)
                                : fmt::format("{}: {:.4g}", watch, value);
  std::string names;
  for (const Suspect& suspect : suspects) {
    names += fmt::format("{}prompt {} sample {} (gap {:.3g})", names.empty() ? "" : ", ",
                         suspect.prompt_id, suspect.sample_index, suspect.log_prob_diff);
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
      result.guard->suspects.push_back(
          {suspect.prompt_id(), suspect.sample_index(), suspect.log_prob_diff()});
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

void TrainerClient::save(const std::string& directory, int64_t step, int64_t version,
                         const std::string& rollout_state, milliseconds timeout) {
  v1::SaveRequest request;
  request.set_directory(directory);
  request.set_step(step);
  request.set_weight_version(version);
  request.set_rollout_state(rollout_state);
  v1::Empty response;
  NIBBLE_CALL(Save, timeout, request, response);
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

#undef NIBBLE_CALL

}  // namespace nibble
