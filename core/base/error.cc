#include "core/base/error.h"

#include "core/base/fail.h"

namespace nibble {

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kNotFound:
      return "not_found";
    case ErrorCode::kFailedPrecondition:
      return "failed_precondition";
    case ErrorCode::kResourceExhausted:
      return "resource_exhausted";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kDeadlineExceeded:
      return "deadline_exceeded";
    case ErrorCode::kDataLoss:
      return "data_loss";
    case ErrorCode::kCancelled:
      return "cancelled";
    case ErrorCode::kUnimplemented:
      return "unimplemented";
    case ErrorCode::kInternal:
      return "internal";
  }
  return "unknown";
}

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kNotFound:
    case ErrorCode::kUnimplemented:
    case ErrorCode::kDataLoss:
      return 2;
    default:
      return 1;
  }
}

namespace detail {

void throw_error(ErrorCode code, std::string message) { throw Error(code, message); }

void throw_check(const char* condition, const char* file, int line, std::string message) {
  throw Error(ErrorCode::kInternal,
              fmt::format("{} (check `{}` failed at {}:{})", message, condition, file, line));
}

}  // namespace detail
}  // namespace nibble
