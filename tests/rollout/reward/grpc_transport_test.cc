// Rewards over gRPC, asked of a real server.
#include <gmock/gmock.h>
#include <grpcpp/server_context.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <thread>

#include "core/base/fail.h"
#include "core/rpc/server.h"
#include "core/rpc/status.h"
#include "proto/reward.grpc.pb.h"
#include "rollout/reward/remote_scorer.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

// Scores by length; what a test wants otherwise, it says.
class Service final : public reward::Reward::Service {
 public:
  grpc::Status Score(grpc::ServerContext* /*context*/, const reward::ScoreRequest* request,
                     reward::ScoreResponse* response) override {
    const int number = num_calls++;
    if (number < fails_first) return failure;
    std::this_thread::sleep_for(delay);
    for (const reward::Sample& sample : request->samples()) {
      last_label = sample.label_json();
      reward::SampleScore& score = *response->add_scores();
      if (sample.response() == "bad") {
        score.set_error("no verdict");
      } else if (sample.response() == "nan") {
        score.set_reward(std::numeric_limits<double>::quiet_NaN());
      } else if (sample.response() != "none") {
        score.set_reward(static_cast<double>(sample.response().size()));
      }
    }
    if (drops_one) response->mutable_scores()->RemoveLast();
    return grpc::Status();
  }

  std::atomic<int> num_calls = 0;
  int fails_first = 0;
  grpc::Status failure = grpc::Status(grpc::StatusCode::UNAVAILABLE, "busy");
  milliseconds delay{0};
  bool drops_one = false;
  std::string last_label;
};

class GrpcTransportTest : public ::testing::Test {
 protected:
  // The server starts with the first question, when the test has said how it behaves.
  std::vector<RewardOutcome> ask(const std::vector<std::string>& responses, int64_t attempts = 2,
                                 milliseconds timeout = milliseconds(20'000)) {
    grpc::Service* const services[] = {&service_};
    if (!server_) server_.emplace(RpcServerOptions{}, services);
    const RemoteScorer scorer({"grpc://" + server_->address(), timeout, attempts});
    const Json label = {{"answer", 7}};
    std::vector<ScoredText> samples;
    for (const std::string& response : responses) samples.push_back({response, &label});
    return scorer.score_all(samples);
  }
  static ErrorCode code_of(const RewardOutcome& outcome) {
    if (const auto* error = std::get_if<Error>(&outcome)) return error->code();
    ADD_FAILURE() << "scored " << std::get<double>(outcome);
    return ErrorCode::kInternal;
  }

  Service service_;
  std::optional<RpcServer> server_;
};

TEST_F(GrpcTransportTest, SendsLabelsAndTakesScoresInOrder) {
  std::vector<std::string> responses;
  for (size_t i = 0; i < 70; ++i) responses.emplace_back(i, 'x');
  const auto outcomes = ask(responses);
  ASSERT_EQ(outcomes.size(), responses.size());
  for (size_t i = 0; i < outcomes.size(); ++i) {
    EXPECT_EQ(std::get<double>(outcomes[i]), static_cast<double>(i));
  }
  EXPECT_EQ(service_.num_calls, 3);
  EXPECT_EQ(Json::parse(service_.last_label), Json({{"answer", 7}}));
}

TEST_F(GrpcTransportTest, AnErrorOfOneSampleLeavesTheOthersTheirScores) {
  const auto outcomes = ask({"bad", "fine", "nan", "none", "\xff\xfe"}, 1);
  EXPECT_EQ(code_of(outcomes[0]), ErrorCode::kInvalidArgument);
  EXPECT_THAT(std::get<Error>(outcomes[0]).what(), HasSubstr("no verdict"));
  EXPECT_EQ(std::get<double>(outcomes[1]), 4);
  EXPECT_EQ(code_of(outcomes[2]), ErrorCode::kUnavailable);
  EXPECT_EQ(code_of(outcomes[3]), ErrorCode::kUnavailable);
  EXPECT_EQ(std::get<double>(outcomes[4]), 6);  // two U+FFFD: what is no UTF-8 is replaced
}

TEST_F(GrpcTransportTest, WhatFailsIsAskedAgain) {
  service_.fails_first = 1;
  EXPECT_EQ(std::get<double>(ask({"abc"})[0]), 3);
  EXPECT_EQ(service_.num_calls, 2);
}

TEST_F(GrpcTransportTest, AServerThatStaysBusyIsUnavailable) {
  service_.fails_first = 100;
  EXPECT_EQ(code_of(ask({"abc"}, 3)[0]), ErrorCode::kUnavailable);
  EXPECT_EQ(service_.num_calls, 3);
}

TEST_F(GrpcTransportTest, ARefusalIsNotAskedAgain) {
  service_.fails_first = 100;
  for (const auto code : {grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::UNIMPLEMENTED}) {
    service_.num_calls = 0;
    service_.failure = grpc::Status(code, "not mine");
    const auto outcome = ask({"abc"}, 3)[0];
    EXPECT_EQ(code_of(outcome), ErrorCode::kInvalidArgument);
    EXPECT_THAT(std::get<Error>(outcome).what(), HasSubstr("not mine"));
    EXPECT_EQ(service_.num_calls, 1);
  }
}

TEST_F(GrpcTransportTest, ALateAnswerIsNone) {
  service_.delay = milliseconds(1'000);
  EXPECT_EQ(code_of(ask({"abc"}, 2, milliseconds(100))[0]), ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(service_.num_calls, 2);
}

TEST_F(GrpcTransportTest, AScoreTooFewIsNoAnswer) {
  service_.drops_one = true;
  for (const RewardOutcome& outcome : ask({"a", "b"}, 1)) {
    EXPECT_EQ(code_of(outcome), ErrorCode::kUnavailable);
  }
}

TEST_F(GrpcTransportTest, NobodyThereIsUnavailable) {
  (void)ask({"a"});
  server_->shutdown(milliseconds(1'000));
  EXPECT_EQ(code_of(ask({"a"}, 1, milliseconds(5'000))[0]), ErrorCode::kUnavailable);
}

TEST(GrpcUrl, IsAHostAndAPort) {
  for (const char* url : {"grpc://", "grpc://host", "grpc://host:1/path", "grpc://a b:1"}) {
    EXPECT_THROW(make_grpc_transport(url), Error) << url;
  }
  EXPECT_NO_THROW(make_grpc_transport("grpc://127.0.0.1:9"));
}

}  // namespace
}  // namespace nibble
