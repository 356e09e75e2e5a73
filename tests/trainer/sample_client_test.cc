// Samples that are fetched from a real gRPC server which is not always there.
#include "trainer/sample_client.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <optional>
#include <thread>

#include "core/base/error.h"
#include "core/rpc/server.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"
#include "tests/core/comm/free_port.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

class Engine final : public v1::Rollout::Service {
 public:
  // Calls that end after the first group, as if the engine had gone in the middle.
  std::atomic<int> num_broken_off = 0;
  std::atomic<int> num_calls = 0;

  grpc::Status FetchSamples(grpc::ServerContext*, const v1::FetchSamplesRequest* request,
                            grpc::ServerWriter<v1::SampleGroupMessage>* writer) override {
    ++num_calls;
    for (const uint64_t id : request->prompt_ids()) {
      v1::SampleGroupMessage group;
      group.set_prompt_id(id);
      group.add_prompt(7);
      writer->Write(group);
      if (num_broken_off.fetch_sub(1) > 0) {
        return to_status(Error(ErrorCode::kUnavailable, "gone"));
      }
    }
    return {};
  }
};

std::optional<ErrorCode> refusal(const std::string& address, std::chrono::milliseconds timeout) {
  try {
    fetch_samples(address, {1, 2}, timeout);
  } catch (const Error& error) {
    return error.code();
  }
  return std::nullopt;
}

TEST(SampleClient, AsksAgainWhatWasBrokenOffAndKeepsNothingOfIt) {
  Engine engine;
  engine.num_broken_off = 2;
  const RpcServer server(RpcServerOptions(), std::array<grpc::Service*, 1>{&engine});
  const auto groups = fetch_samples(server.address(), {1, 2}, 20s);
  EXPECT_EQ(engine.num_calls, 3);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].prompt_id, 1u);
  EXPECT_EQ(groups[1].prompt_id, 2u);
}

TEST(SampleClient, WaitsForAnEngineThatIsBackInTimeAndNoLonger) {
  const int port = free_port();
  const std::string address = "127.0.0.1:" + std::to_string(port);
  EXPECT_EQ(refusal(address, 400ms), ErrorCode::kUnavailable);
  Engine engine;
  std::optional<RpcServer> server;
  std::thread late([&] {
    std::this_thread::sleep_for(500ms);
    RpcServerOptions options;
    options.port = port;
    server.emplace(options, std::array<grpc::Service*, 1>{&engine});
  });
  EXPECT_EQ(refusal(address, 30s), std::nullopt);
  late.join();
}

}  // namespace
}  // namespace nibble
