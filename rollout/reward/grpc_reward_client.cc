#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/rpc/channel.h"
#include "core/rpc/status.h"
#include "proto/reward.grpc.pb.h"
#include "rollout/reward/remote_transport.h"

namespace nibble {
namespace {

constexpr std::string_view kScheme = "grpc://";

// Text as protobuf wants it: what is no UTF-8 is replaced.
std::string valid_text(std::string_view text) {
  const std::string quoted =
      Json(std::string(text)).dump(-1, ' ', false, Json::error_handler_t::replace);
  return Json::parse(quoted).get<std::string>();
}

// Whether asking again will not change it.
bool is_refusal(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kNotFound:
    case ErrorCode::kFailedPrecondition:
    case ErrorCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

class GrpcTransport final : public RemoteTransport {
 public:
  explicit GrpcTransport(const std::string& url) : url_(url) {
    const std::string address = url.substr(std::min(url.size(), kScheme.size()));
    if (!url.starts_with(kScheme) || address.find_first_of("/?#@ \r\n\t") != std::string::npos) {
      fail(ErrorCode::kInvalidArgument,
           "the URL of the remote reward is '{}'; it must be grpc://HOST:PORT", url);
    }
    stub_ = reward::Reward::NewStub(make_channel(address));
  }

  std::vector<RewardOutcome> ask(std::span<const ScoredText> samples,
                                 std::chrono::milliseconds timeout) const override {
    reward::ScoreRequest request;
    for (const ScoredText& sample : samples) {
      reward::Sample& message = *request.add_samples();
      message.set_response(valid_text(sample.response));
      message.set_label_json(sample.label->dump(-1, ' ', false, Json::error_handler_t::replace));
    }
    reward::ScoreResponse response;
    try {
      call_rpc("Score", url_, timeout, [&](grpc::ClientContext& context) {
        return stub_->Score(&context, request, &response);
      });
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kDeadlineExceeded) throw;
      const bool is_refused = is_refusal(error.code());
      fail(is_refused ? ErrorCode::kInvalidArgument : ErrorCode::kUnavailable, "{}", error.what());
    }
    if (static_cast<size_t>(response.scores_size()) != samples.size()) {
      fail(ErrorCode::kUnavailable, "{} gave {} scores for {} samples", url_,
           response.scores_size(), samples.size());
    }
    std::vector<RewardOutcome> outcomes;
    for (const reward::SampleScore& score : response.scores())
      outcomes.push_back(outcome_of(score));
    return outcomes;
  }

 private:
  static RewardOutcome outcome_of(const reward::SampleScore& score) {
    switch (score.outcome_case()) {
      case reward::SampleScore::kReward:
        return remote_reward(score.reward());
      case reward::SampleScore::kError:
        return remote_refusal(score.error());
      default:
        return Error(ErrorCode::kUnavailable,
                     "the remote reward gave neither a number nor an error");
    }
  }

  const std::string url_;
  std::unique_ptr<reward::Reward::StubInterface> stub_;
};

}  // namespace

std::unique_ptr<RemoteTransport> make_grpc_transport(const std::string& url) {
  return std::make_unique<GrpcTransport>(url);
}

}  // namespace nibble
