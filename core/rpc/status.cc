#include "core/rpc/status.h"

#include <grpcpp/client_context.h>

#include <array>
#include <new>
#include <string>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxMessageBytes = 2048;

struct CodePair {
  ErrorCode ours;
  grpc::StatusCode theirs;
};
constexpr std::array<CodePair, 10> kCodes = {{
    {ErrorCode::kInvalidArgument, grpc::StatusCode::INVALID_ARGUMENT},
    {ErrorCode::kNotFound, grpc::StatusCode::NOT_FOUND},
    {ErrorCode::kFailedPrecondition, grpc::StatusCode::FAILED_PRECONDITION},
    {ErrorCode::kResourceExhausted, grpc::StatusCode::RESOURCE_EXHAUSTED},
    {ErrorCode::kUnavailable, grpc::StatusCode::UNAVAILABLE},
    {ErrorCode::kDeadlineExceeded, grpc::StatusCode::DEADLINE_EXCEEDED},
    {ErrorCode::kDataLoss, grpc::StatusCode::DATA_LOSS},
    {ErrorCode::kCancelled, grpc::StatusCode::CANCELLED},
    {ErrorCode::kUnimplemented, grpc::StatusCode::UNIMPLEMENTED},
    {ErrorCode::kInternal, grpc::StatusCode::INTERNAL},
}};

std::string details_of(ErrorCode code) { return fmt::format("nibble:{}", error_code_name(code)); }

ErrorCode code_of(const grpc::Status& status) {
  const std::string details = status.error_details();
  for (const CodePair& pair : kCodes) {
    if (details == details_of(pair.ours)) return pair.ours;
  }
  for (const CodePair& pair : kCodes) {
    if (pair.theirs == status.error_code()) return pair.ours;
  }
  switch (status.error_code()) {
    case grpc::StatusCode::OUT_OF_RANGE:
      return ErrorCode::kInvalidArgument;
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      return ErrorCode::kFailedPrecondition;
    case grpc::StatusCode::ABORTED:
      return ErrorCode::kUnavailable;
    default:
      return ErrorCode::kInternal;
  }
}

// gRPC says it in words only: of 1.51, and of later versions; where bytes are on their way to the
// peer, the kernel gives the connection up after the same time.
bool is_keepalive_timeout(const grpc::Status& status) {
  const std::string message = status.error_message();
  return status.error_code() == grpc::StatusCode::UNAVAILABLE &&
         (message.find("keepalive watchdog timeout") != std::string::npos ||
          message.find("ping timeout") != std::string::npos ||
          message.find("recvmsg:Connection timed out") != std::string::npos);
}

}  // namespace

grpc::Status to_status(const Error& error) {
  grpc::StatusCode code = grpc::StatusCode::INTERNAL;
  for (const CodePair& pair : kCodes) {
    if (pair.ours == error.code()) code = pair.theirs;
  }
  std::string message = error.what();
  if (message.size() > kMaxMessageBytes) {
    message.resize(kMaxMessageBytes);
    message += "...";
  }
  return {code, message, details_of(error.code())};
}

Error from_status(const grpc::Status& status) {
  NIBBLE_CHECK(!status.ok(), "an OK status is no error");
  return Error(code_of(status), status.error_message());
}

namespace detail {

grpc::Status status_of_current_exception() {
  try {
    throw;
  } catch (const Error& error) {
    return to_status(error);
  } catch (const std::bad_alloc&) {
    return to_status(Error(ErrorCode::kResourceExhausted, "out of memory"));
  } catch (const std::exception& error) {
    return to_status(Error(ErrorCode::kInternal, error.what()));
  } catch (...) {
    return to_status(Error(ErrorCode::kInternal, "an exception of unknown type"));
  }
}

}  // namespace detail

void call_rpc(std::string_view method, std::string_view peer, std::chrono::milliseconds timeout,
              const std::function<grpc::Status(grpc::ClientContext&)>& invoke) {
  if (timeout.count() <= 0) {
    fail(ErrorCode::kDeadlineExceeded, "{} on {}: no time left to make the call", method, peer);
  }
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  const grpc::Status status = invoke(context);
  if (status.ok()) return;
  const Error error = from_status(status);
  if (error.code() == ErrorCode::kDeadlineExceeded && status.error_details().empty()) {
    fail(error.code(),
         "{} on {}: no answer within {} ms; the process is stopped, hangs, or needs longer than "
         "that",
         method, peer, timeout.count());
  }
  if (is_keepalive_timeout(status)) {
    fail(error.code(), "{} on {}: it does not answer; the process is stopped, hangs, or is cut off",
         method, peer);
  }
  fail(error.code(), "{} on {}: {}", method, peer, error.what());
}

}  // namespace nibble
