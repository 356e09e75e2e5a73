#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

// No fmt here: .cu files include this header (fmt 9 does not compile under nvcc 13 with C++20).

namespace nibble {

/// What went wrong, by who has to act. Maps one to one onto gRPC status codes (core/rpc).
enum class ErrorCode {
  kInvalidArgument,     ///< the caller's input is wrong: fix the file, flag or request
  kNotFound,            ///< a named file, tensor, worker or version does not exist
  kFailedPrecondition,  ///< the input is fine, the state is not: stale epoch, wrong order
  kResourceExhausted,   ///< no memory, disk, port or time budget left
  kUnavailable,         ///< a peer is gone or the operation was aborted; may be retried
  kDeadlineExceeded,    ///< a wait ran past its deadline
  kDataLoss,            ///< stored or received bytes fail their check
  kCancelled,           ///< somebody asked to stop
  kUnimplemented,       ///< a valid request for something Nibble does not do
  kInternal,            ///< a bug of ours
};

/// Stable lower-case name of a code, e.g. "invalid_argument".
std::string_view error_code_name(ErrorCode code);

/// The one exception type of the project. what() is one sentence that names the thing at fault.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Process exit code for an error that reached main: 2 for bad input, 1 for a fault.
int exit_code(ErrorCode code);

}  // namespace nibble
