#pragma once

#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <string>

#include "core/http/http_client.h"

namespace nibble {

/// A POST of JSON, or a GET if `body` is empty.
inline boost::beast::http::request<boost::beast::http::string_body> http_request(
    const HttpTarget& target, const std::string& path, const std::string& body) {
  namespace http = boost::beast::http;
  http::request<http::string_body> request{body.empty() ? http::verb::get : http::verb::post, path,
                                           11};
  request.set(http::field::host, target.name());
  request.set(http::field::user_agent, "nibble");
  if (!target.api_key.empty()) {
    request.set(http::field::authorization, "Bearer " + target.api_key);
  }
  if (!body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = body;
  request.prepare_payload();
  return request;
}

}  // namespace nibble
