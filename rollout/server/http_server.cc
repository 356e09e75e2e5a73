#include "rollout/server/http_server.h"

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "core/base/background_task.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "rollout/server/http_connection.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

tcp::endpoint endpoint_of(const HttpServerOptions& options) {
  error_code failed;
  const auto address =
      asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, failed);
  if (failed) {
    fail(ErrorCode::kInvalidArgument,
         "host '{}' is no IP address; use one of this machine, 0.0.0.0 for all", options.host);
  }
  return {address, static_cast<uint16_t>(options.port)};
}

}  // namespace

struct HttpServer::Parts {
  Parts(HttpServerOptions server_options, HttpHandlers server_handlers)
      : options(std::move(server_options)),
        handlers(std::move(server_handlers)),
        workers(static_cast<size_t>(options.num_workers)),
        host{options, handlers, workers, num_connections, [this](uint64_t id) { forget(id); }},
        acceptor(sockets) {}

  void listen();
  void accept();
  void admit(tcp::socket socket);
  void turn_away(tcp::socket socket);
  void forget(uint64_t id);
  void run(const std::stop_token& stop);
  void close_all();

  const HttpServerOptions options;
  const HttpHandlers handlers;
  std::mutex mutex;
  std::condition_variable has_fewer;
  std::atomic<int64_t> num_connections{0};  // changed under mutex
  bool is_stopped = false;                  // of the thread that calls shutdown()
  bool is_draining = false;                 // of the socket thread, like what follows
  std::unordered_map<uint64_t, std::shared_ptr<HttpConnection>> connections;
  uint64_t next_id = 0;
  asio::thread_pool workers;
  const ConnectionHost host;
  asio::io_context sockets{1};  // its connections go before what they borrow
  tcp::acceptor acceptor;
  std::optional<BackgroundTask> thread;  // last member
};

void HttpServer::Parts::listen() {
  const tcp::endpoint endpoint = endpoint_of(options);
  error_code failed;
  acceptor.open(endpoint.protocol(), failed);
  if (!failed) acceptor.set_option(tcp::acceptor::reuse_address(true), failed);
  if (!failed) acceptor.bind(endpoint, failed);
  if (!failed) acceptor.listen(asio::socket_base::max_listen_connections, failed);
  if (failed) {
    fail(ErrorCode::kResourceExhausted,
         "cannot listen on {} port {}: {}; choose another with --port", options.host, options.port,
         failed.message());
  }
}

void HttpServer::Parts::accept() {
  acceptor.async_accept([this](const error_code& error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
    if (error) {
      // No descriptor is left, or the client has gone: others may still come.
      get_logger("serve")->warn("cannot take a connection: {}", error.message());
      const auto pause = std::make_shared<asio::steady_timer>(sockets);
      pause->expires_after(std::chrono::milliseconds(100));
      pause->async_wait([this, pause](const error_code& stopped) {
        if (!stopped && acceptor.is_open()) accept();
      });
      return;
    }
    if (num_connections < options.max_connections) {
      admit(std::move(socket));
    } else {
      turn_away(std::move(socket));
    }
    accept();
  });
}

void HttpServer::Parts::admit(tcp::socket socket) {
  error_code failed;
  socket.non_blocking(true, failed);
  if (!failed) socket.set_option(tcp::no_delay(true), failed);
  if (failed) return;  // gone again
  const uint64_t id = next_id++;
  const auto connection = std::make_shared<HttpConnection>(id, std::move(socket), host);
  connections.emplace(id, connection);
  {
    const std::lock_guard lock(mutex);
    ++num_connections;
  }
  connection->start();
}

// With what fits into the socket's buffer; no time is spent on those who are too many.
void HttpServer::Parts::turn_away(tcp::socket socket) {
  const HttpResponse response =
      handlers.make_error(503, "too many connections; try again in a moment");
  const std::string text = fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: {}\r\nRetry-After: 1\r\n"
      "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
      response.content_type, response.body.size(), response.body);
  error_code ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(text), ignored);
}

void HttpServer::Parts::forget(uint64_t id) {
  connections.erase(id);
  const std::lock_guard lock(mutex);
  --num_connections;
  has_fewer.notify_all();
}

// What one connection throws (no memory is left) ends that one: no operation of it is left, and its
// timer closes it.
void HttpServer::Parts::run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    try {
      sockets.run();
      return;
    } catch (const std::exception& error) {
      get_logger("serve")->error("a connection failed: {}", error.what());
    }
  }
}

void HttpServer::Parts::close_all() {
  // Of a copy: who closes takes itself out.
  for (const auto& [id, connection] : std::unordered_map(connections)) connection->close();
}

HttpServer::HttpServer(HttpServerOptions options, HttpHandlers handlers)
    : parts_(std::make_unique<Parts>(std::move(options), std::move(handlers))) {
  parts_->listen();
  port_ = parts_->acceptor.local_endpoint().port();
  parts_->accept();
  parts_->thread.emplace([parts = parts_.get()](const std::stop_token& stop) { parts->run(stop); });
}

HttpServer::~HttpServer() { shutdown(Deadline::after(std::chrono::milliseconds(0))); }

void HttpServer::shutdown(Deadline deadline) {
  if (std::exchange(parts_->is_stopped, true)) return;
  Parts& parts = *parts_;
  asio::post(parts.sockets, [&parts] {
    error_code ignored;
    parts.acceptor.close(ignored);
    for (const auto& [id, connection] : std::unordered_map(parts.connections)) connection->drain();
  });
  {
    std::unique_lock lock(parts.mutex);
    parts.has_fewer.wait_until(lock, deadline.time(), [&] { return parts.num_connections == 0; });
  }
  asio::post(parts.sockets, [&parts] {
    parts.close_all();
    parts.sockets.stop();
  });
  parts.thread.reset();
  parts.workers.join();
}

}  // namespace nibble
