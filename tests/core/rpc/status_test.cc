#include "core/rpc/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <future>

#include "core/rpc/open_calls.h"
#include "tests/core/rpc/echo_service.h"

namespace nibble::test {
namespace {

using ::testing::HasSubstr;

class StatusTest : public ::testing::Test {
 protected:
  EchoService echo_;
  std::array<grpc::Service*, 1> services_ = {&echo_};
  RpcServer server_{RpcServerOptions{}, services_};
  std::shared_ptr<grpc::Channel> channel_ = make_channel(server_.address());
};

TEST_F(StatusTest, EveryErrorCodeRoundTripsOverTheWire) {
  constexpr int kNumCodes = static_cast<int>(ErrorCode::kInternal) + 1;
  for (int code = 0; code < kNumCodes; ++code) {
    const Error error = error_of([&] { say(channel_, echo_request("bad \"é\" text", code + 1)); });
    EXPECT_EQ(error.code(), static_cast<ErrorCode>(code));
    EXPECT_STREQ(error.what(), "Say on the-peer: bad \"é\" text");
  }
}

TEST_F(StatusTest, CodesMapOntoTheGrpcCodeOfTheSameName) {
  EXPECT_EQ(to_status(Error(ErrorCode::kDataLoss, "x")).error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(to_status(Error(ErrorCode::kNotFound, "x")).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(to_status(Error(ErrorCode::kUnavailable, "x")).error_code(),
            grpc::StatusCode::UNAVAILABLE);
}

TEST_F(StatusTest, StatusesOfOthersMapToTheNearestCode) {
  const auto code = [](grpc::StatusCode status) { return from_status({status, "x"}).code(); };
  EXPECT_EQ(code(grpc::StatusCode::UNAVAILABLE), ErrorCode::kUnavailable);
  EXPECT_EQ(code(grpc::StatusCode::ABORTED), ErrorCode::kUnavailable);
  EXPECT_EQ(code(grpc::StatusCode::OUT_OF_RANGE), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(grpc::StatusCode::UNAUTHENTICATED), ErrorCode::kFailedPrecondition);
  EXPECT_EQ(code(grpc::StatusCode::UNKNOWN), ErrorCode::kInternal);
  EXPECT_EQ(from_status({grpc::StatusCode::NOT_FOUND, "x", "nibble:no_such_code"}).code(),
            ErrorCode::kNotFound);
}

TEST_F(StatusTest, APeerThatFellSilentIsSaidToBeStoppedOrCutOff) {
  for (const char* text : {"keepalive watchdog timeout", "recvmsg:Connection timed out"}) {
    const Error error = error_of([&] {
      call_rpc("Say", "the-peer", std::chrono::seconds(1), [&](grpc::ClientContext&) {
        return grpc::Status(grpc::StatusCode::UNAVAILABLE, text);
      });
    });
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    EXPECT_THAT(error.what(), HasSubstr("Say on the-peer: it does not answer"));
    EXPECT_THAT(error.what(), HasSubstr("is cut off"));
  }
}

TEST_F(StatusTest, ForeignExceptionsBecomeInternalAndDoNotEscape) {
  const Error standard = error_of([&] { say(channel_, echo_request("", 1000)); });
  EXPECT_EQ(standard.code(), ErrorCode::kInternal);
  EXPECT_THAT(standard.what(), HasSubstr("not one of ours"));
  EXPECT_EQ(error_of([&] { say(channel_, echo_request("", 1001)); }).code(), ErrorCode::kInternal);
}

TEST_F(StatusTest, ALongMessageIsCutAndKeepsItsCode) {
  const Error error = error_of([&] { say(channel_, echo_request(std::string(100'000, 'x'), 2)); });
  EXPECT_EQ(error.code(), ErrorCode::kNotFound);
  EXPECT_LT(std::string(error.what()).size(), 2200u);
}

TEST_F(StatusTest, CallsOfAClientThatIsGivenUpEndAlsoLaterOnes) {
  OpenCalls calls;
  const auto wait = [&] {
    return error_of([&] {
      call_rpc("Say", "the-peer", std::chrono::seconds(30), [&](grpc::ClientContext& context) {
        const OpenCalls::Scope open(calls, context);
        EchoRequest request = echo_request("x");
        request.set_wait(true);
        EchoResponse response;
        return Echo::NewStub(channel_)->Say(&context, request, &response);
      });
    });
  };
  auto first = std::async(std::launch::async, wait);
  EXPECT_EQ(first.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
  calls.cancel();
  EXPECT_EQ(first.get().code(), ErrorCode::kCancelled);
  EXPECT_EQ(wait().code(), ErrorCode::kCancelled);
}

TEST_F(StatusTest, AnAnswerThatNeverComesRunsIntoTheDeadline) {
  EchoRequest request = echo_request("x");
  request.set_wait(true);
  const Error error = error_of([&] { say(channel_, request, std::chrono::milliseconds(50)); });
  EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded);
  EXPECT_STREQ(error.what(),
               "Say on the-peer: no answer within 50 ms; the process is stopped, hangs, or needs "
               "longer than that");
}

TEST_F(StatusTest, ACallWithoutTimeLeftIsNotMade) {
  const Error error = error_of([&] { say(channel_, echo_request("x"), {}); });
  EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(echo_.calls, 0);
}

}  // namespace
}  // namespace nibble::test
