#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "core/base/clock.h"
#include "rollout/server/http_message.h"

namespace nibble {

/// Every size and wait of a server is bounded.
struct HttpServerOptions {
  std::string host = "127.0.0.1";  ///< an address of this machine, or "localhost"
  int port = 0;                    ///< 0: any free one
  int64_t max_body_bytes = 8 << 20;
  int64_t max_head_bytes = 16 << 10;
  int64_t max_unsent_bytes = 32 << 20;  ///< of a stream whose client does not read
  int max_connections = 256;
  int num_workers = 2;
  std::chrono::milliseconds idle_timeout{60'000};   ///< between two requests of a connection
  std::chrono::milliseconds head_timeout{10'000};   ///< from its first byte to its last
  std::chrono::milliseconds body_timeout{60'000};   ///< the same
  std::chrono::milliseconds write_timeout{30'000};  ///< without any progress of the client
  /// From a request to the end of its answer, whatever the handler does: 504, or the end of a
  /// stream. Above the handler's own deadline.
  std::chrono::milliseconds answer_timeout{3'600'000};
};

/// What a server asks of the API behind it.
struct HttpHandlers {
  /// Looks at a head before its body is read: a response refuses the request. On the socket thread;
  /// must not block.
  std::function<std::optional<HttpResponse>(const HttpRequest& head)> screen;
  /// Answers a request, now or later. On a worker thread; what it throws becomes a 500.
  std::function<void(const HttpRequest&, const std::shared_ptr<HttpReply>&)> handle;
  /// The answer to what is wrong below the API: 400, 408, 413, 415, 417, 431, 500, 503.
  std::function<HttpResponse(int status, const std::string& message)> make_error;
};

/// HTTP/1.1 on one thread for all sockets (Boost.Beast parses) and a few workers for handlers.
/// Any thread may call any method. Replies must be dropped before the server is destroyed.
class HttpServer {
 public:
  /// Binds and starts. Throws Error{kInvalidArgument} for a host that is no address,
  /// Error{kResourceExhausted} if the port cannot be bound.
  HttpServer(HttpServerOptions options, HttpHandlers handlers);
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  ~HttpServer();

  int port() const { return port_; }

  /// Takes no more connections and no second request on the present ones; waits until they have
  /// their answers, or until `deadline`; then closes what is left. A second call does nothing.
  void shutdown(Deadline deadline);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
  int port_ = 0;  // constant after construction
};

}  // namespace nibble
