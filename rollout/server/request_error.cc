#include "rollout/server/request_error.h"

#include "core/base/json.h"

namespace nibble {
namespace {

const char* type_of(int status) {
  if (status == 401) return "authentication_error";
  if (status == 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

OrderedJson code_of(int status) {
  switch (status) {
    case 401:
      return "invalid_api_key";
    case 404:
      return "not_found";
    case 429:
      return "queue_full";
    default:
      return nullptr;
  }
}

}  // namespace

std::string error_object(int status, const std::string& message, const std::string& field) {
  OrderedJson error;
  error["message"] = message;
  error["type"] = type_of(status);
  error["param"] = field.empty() ? OrderedJson(nullptr) : OrderedJson(field);
  error["code"] = code_of(status);
  // Messages quote what clients send, which need not be UTF-8.
  return OrderedJson{{"error", error}}.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

HttpResponse error_response(int status, const std::string& message, const std::string& field) {
  HttpResponse response;
  response.status = status;
  response.body = error_object(status, message, field);
  if (status == 429 || status == 503) response.retry_after_s = 1;
  return response;
}

HttpResponse error_response(const RequestError& error) {
  return error_response(error.status(), error.what(), error.field());
}

int http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnimplemented:
      return 400;
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kFailedPrecondition:
    case ErrorCode::kResourceExhausted:
    case ErrorCode::kUnavailable:
    case ErrorCode::kCancelled:
      return 503;
    case ErrorCode::kDeadlineExceeded:
      return 504;
    case ErrorCode::kDataLoss:
    case ErrorCode::kInternal:
      break;
  }
  return 500;
}

}  // namespace nibble
