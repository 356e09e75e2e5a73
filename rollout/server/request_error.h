#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "core/base/error.h"
#include "rollout/server/http_message.h"

namespace nibble {

/// A request that is refused: an Error that also names the HTTP status and the field at fault.
class RequestError : public Error {
 public:
  RequestError(int status, std::string field, const std::string& message)
      : Error(ErrorCode::kInvalidArgument, message), status_(status), field_(std::move(field)) {}
  int status() const noexcept { return status_; }
  const std::string& field() const noexcept { return field_; }  ///< empty: none in particular

 private:
  int status_;
  std::string field_;
};

/// Throws RequestError 400 about a field.
template <typename... Args>
[[noreturn]] void refuse_field(const std::string& field, fmt::format_string<Args...> format,
                               Args&&... args) {
  throw RequestError(400, field, fmt::format(format, std::forward<Args>(args)...));
}

/// OpenAI's error object as a string of JSON: {"error": {"message", "type", "param", "code"}}.
std::string error_object(int status, const std::string& message, const std::string& field = {});

/// The same as a whole answer; a 429 or 503 says when to come again.
HttpResponse error_response(int status, const std::string& message, const std::string& field = {});
HttpResponse error_response(const RequestError& error);

/// The status that says what an Error of the engine or of a parser means to a client.
int http_status(ErrorCode code);

}  // namespace nibble
