#pragma once

#include <grpcpp/support/status.h>

#include <chrono>
#include <functional>
#include <string_view>
#include <utility>

#include "core/base/error.h"

namespace grpc {
class ClientContext;
}

namespace nibble {

/// The gRPC status of an error: the matching code, the message (cut at 2 KiB, because trailers are
/// limited), and the name of the ErrorCode in the details, so that what a peer threw can be told
/// from what gRPC itself reports.
grpc::Status to_status(const Error& error);

/// The reverse for a status that is not OK: the ErrorCode in its details, otherwise the nearest one
/// to its gRPC code. The message is the status's own.
Error from_status(const grpc::Status& status);

namespace detail {
grpc::Status status_of_current_exception();
}  // namespace detail

/// Runs the body of a service method; the one place where exceptions become statuses. Error keeps
/// its code, std::bad_alloc is kResourceExhausted, any other exception is kInternal; it never
/// throws. The body converts the request, calls, and converts the response.
template <typename Body>
grpc::Status run_rpc(Body&& body) noexcept {
  try {
    std::forward<Body>(body)();
    return grpc::Status();
  } catch (...) {
    return detail::status_of_current_exception();
  }
}

/// Makes one unary call: `invoke` gets a fresh context whose deadline is `timeout` from now and
/// calls the stub. Throws what the peer threw, or Error{kDeadlineExceeded} after `timeout` and
/// Error{kUnavailable} if the peer is gone; each message starts with `method` and `peer`
/// ("Reserve on 10.0.0.7:7000: ..."). A timeout that is not positive throws at once.
void call_rpc(std::string_view method, std::string_view peer, std::chrono::milliseconds timeout,
              const std::function<grpc::Status(grpc::ClientContext&)>& invoke);

}  // namespace nibble
