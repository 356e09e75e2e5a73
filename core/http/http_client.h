#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace nibble {

/// Where an HTTP server is, and what it wants to see.
struct HttpTarget {
  std::string host = "127.0.0.1";
  std::string port = "80";
  std::string api_key;  ///< sent as 'Authorization: Bearer KEY'; empty: nothing is

  std::string name() const { return host + ":" + port; }
};

/// Reads "http://HOST[:PORT][/]". Throws Error{kInvalidArgument} naming `flag`.
HttpTarget parse_http_url(const std::string& flag, const std::string& url);

struct HttpAnswer {
  int status = 0;
  std::string body;
};

/// One request on a connection of its own; a body makes it a POST of JSON, none a GET. Throws
/// Error{kUnavailable} naming the server that cannot be reached, hangs up or sends more than
/// 16 MiB, Error{kDeadlineExceeded} after `timeout`.
HttpAnswer fetch(const HttpTarget& target, const std::string& path, const std::string& body,
                 std::chrono::milliseconds timeout);

}  // namespace nibble
