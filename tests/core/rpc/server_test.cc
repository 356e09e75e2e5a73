#include "core/rpc/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <thread>

#include "tests/core/rpc/echo_service.h"

namespace nibble::test {
namespace {

using ::testing::HasSubstr;

class ServerTest : public ::testing::Test {
 protected:
  EchoService echo_;
  std::array<grpc::Service*, 1> services_ = {&echo_};
};

TEST_F(ServerTest, PortZeroBindsAFreePortThatAnswers) {
  const RpcServer server({}, services_);
  EXPECT_GT(server.port(), 0);
  EXPECT_EQ(server.address(), fmt::format("127.0.0.1:{}", server.port()));
  EXPECT_EQ(say(make_channel(server.address()), echo_request("hello")), "hello");
}

TEST_F(ServerTest, APortInUseIsRefusedByName) {
  const RpcServer first({}, services_);
  EchoService other;
  const std::array<grpc::Service*, 1> others = {&other};
  const Error error = error_of([&] { RpcServer({.port = first.port()}, others); });
  EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
  EXPECT_THAT(error.what(), HasSubstr(fmt::format("127.0.0.1:{}", first.port())));
  EXPECT_THAT(error.what(), HasSubstr("in use"));
}

TEST_F(ServerTest, BeyondLoopbackItWantsTlsUnlessToldOtherwise) {
  for (const char* host : {"0.0.0.0", "::", "10.1.2.3", "example.org", "127.0.0.1.example.org"}) {
    const Error error = error_of([&] { RpcServer({.host = host}, services_); });
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << host;
    EXPECT_THAT(error.what(), HasSubstr("without TLS"));
  }
  const RpcServer open({.host = "0.0.0.0", .plain_text = PlainText::kAnyAddress}, services_);
  EXPECT_EQ(say(make_channel(fmt::format("127.0.0.1:{}", open.port())), echo_request("x")), "x");
}

TEST_F(ServerTest, BadPortsAndAddressesAreRefused) {
  EXPECT_EQ(error_of([&] { RpcServer({.port = 70000}, services_); }).code(),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([&] { RpcServer({.host = ""}, services_); }).code(),
            ErrorCode::kInvalidArgument);
  for (const char* address : {"localhost", ":1", "host:", "host:x1"}) {
    EXPECT_EQ(error_of([&] { make_channel(address); }).code(), ErrorCode::kInvalidArgument);
  }
}

TEST_F(ServerTest, APeerThatIsGoneIsUnavailable) {
  std::optional<RpcServer> server(std::in_place, RpcServerOptions{}, services_);
  const auto channel = make_channel(server->address());
  EXPECT_EQ(say(channel, echo_request("x")), "x");
  server.reset();
  const Error error = error_of([&] { say(channel, echo_request("x")); });
  EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(error.what(), ::testing::StartsWith("Say on the-peer: "));
}

TEST_F(ServerTest, TheChannelFindsAServerThatComesBack) {
  std::optional<RpcServer> server(std::in_place, RpcServerOptions{}, services_);
  const int port = server->port();
  const auto channel = make_channel(server->address());
  EXPECT_EQ(say(channel, echo_request("x")), "x");
  server.reset();
  error_of([&] { say(channel, echo_request("x")); });
  server.emplace(RpcServerOptions{.port = port}, services_);
  ASSERT_TRUE(
      channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10)));
  EXPECT_EQ(say(channel, echo_request("back")), "back");
}

TEST_F(ServerTest, ShutdownCancelsCallsThatOutlastIt) {
  RpcServer server({}, services_);
  const auto channel = make_channel(server.address());
  std::optional<Error> error;
  std::thread caller([&] {
    EchoRequest request = echo_request("x");
    request.set_wait(true);
    error = error_of([&] { say(channel, request); });
  });
  while (echo_.calls == 0) std::this_thread::yield();
  server.shutdown(std::chrono::milliseconds(20));
  caller.join();
  EXPECT_EQ(error->code(), ErrorCode::kUnavailable);
  server.shutdown(std::chrono::milliseconds(20));
}

TEST_F(ServerTest, AMessageOverTheLimitIsRefused) {
  const RpcServer server({.limits = {.max_message_bytes = 1000}}, services_);
  const Error error =
      error_of([&] { say(make_channel(server.address()), echo_request(std::string(2000, 'x'))); });
  EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
}

TEST_F(ServerTest, WithoutServicesItIsOurBug) {
  EXPECT_EQ(error_of([&] { RpcServer({}, {}); }).code(), ErrorCode::kInternal);
}

}  // namespace
}  // namespace nibble::test
