#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/base/fail.h"
#include "core/rpc/channel.h"
#include "core/rpc/server.h"
#include "core/rpc/status.h"
#include "tests/core/rpc/echo.grpc.pb.h"

namespace nibble::test {

/// Echoes, fails, or waits until release() or until the call is cancelled.
class EchoService final : public Echo::Service {
 public:
  grpc::Status Say(grpc::ServerContext* context, const EchoRequest* request,
                   EchoResponse* response) override {
    return run_rpc([&] {
      ++calls;
      if (request->fail_with() == 1000) throw std::runtime_error("not one of ours");
      if (request->fail_with() == 1001) throw 7;
      if (request->fail_with() > 0) {
        fail(static_cast<ErrorCode>(request->fail_with() - 1), "{}", request->text());
      }
      while (request->wait() && !context->IsCancelled()) std::this_thread::yield();
      response->set_text(request->text());
    });
  }
  std::atomic<int> calls = 0;
};

/// One call with `timeout`; returns the echoed text.
inline std::string say(const std::shared_ptr<grpc::Channel>& channel, const EchoRequest& request,
                       std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
  const auto stub = Echo::NewStub(channel);
  EchoResponse response;
  call_rpc("Say", "the-peer", timeout,
           [&](grpc::ClientContext& context) { return stub->Say(&context, request, &response); });
  return response.text();
}

inline EchoRequest echo_request(std::string text, int fail_with = 0) {
  EchoRequest request;
  request.set_text(std::move(text));
  request.set_fail_with(fail_with);
  return request;
}

/// Runs `call` and returns the Error it throws; kInternal "nothing was thrown" if none.
template <typename Call>
Error error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::kInternal, "nothing was thrown");
}

}  // namespace nibble::test
