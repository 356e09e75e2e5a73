#pragma once

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "rollout/server/http_server.h"

namespace nibble {

class ConnectionReply;

/// What the connections of a server share.
struct ConnectionHost {
  const HttpServerOptions& options;
  const HttpHandlers& handlers;
  boost::asio::thread_pool& workers;
  const std::atomic<int64_t>& num_connections;
  std::function<void(uint64_t id)> closed;  ///< on the socket thread, once for each connection
};

/// One client. Its host holds it (shared: with operations under way) until it tells that it has
/// closed. All methods on the socket thread.
class HttpConnection final : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(uint64_t id, boost::asio::ip::tcp::socket socket, const ConnectionHost& host);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void start() { read_request(); }
  /// Closes it once the request it works on, if any, is answered.
  void drain();
  void close();

 private:
  friend class ConnectionReply;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using ErrorCodeOf = boost::system::error_code;
  enum class Phase { kIdle, kReading, kWorking, kLingering, kClosed };

  void read_request();
  void read_head();
  void head_read(const ErrorCodeOf& error);
  void read_body();
  void body_read(const ErrorCodeOf& error);
  void reading_failed(const ErrorCodeOf& error);
  void dispatch();
  void watch_client();
  void look_for_client_later();
  void arm_answer();
  void answer_is_late();

  // From a reply.
  void begin_answer(const std::string& head, bool is_last);
  void add_to_answer(const std::string& bytes, bool is_last);
  void drop_answer();
  std::string head_of(const HttpResponse& response, std::optional<int64_t> body_bytes);
  std::string chunk_of(const std::string& piece) const;

  void refuse(const HttpResponse& response);
  void write_more();
  void written(const ErrorCodeOf& error);
  void finish_request();
  void linger();
  void read_leftovers();
  void arm(std::chrono::milliseconds after);
  void disarm();
  void time_is_up();
  HttpRequest head() const;

  const uint64_t id_;
  const ConnectionHost& host_;
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  boost::asio::steady_timer watch_timer_;   // of a client that has sent more
  boost::asio::steady_timer answer_timer_;  // of the request that is worked on
  uint64_t timer_epoch_ = 0;                // what a timer that has fired already is told apart by
  boost::beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  Phase phase_ = Phase::kIdle;
  bool is_late_ = false;      // the read that was cut short took too long
  bool is_draining_ = false;  // no further request
  bool keeps_alive_ = false;
  bool is_http_1_0_ = false;
  uint64_t request_ = 0;  // number of the request that is worked on
  std::string unsent_;
  std::string in_flight_;  // being written
  bool is_writing_ = false;
  bool has_all_ = false;    // unsent_ ends with the end of the answer
  bool has_begun_ = false;  // the answer
  std::weak_ptr<ConnectionReply> reply_;
};

/// A reply that goes to a connection.
class ConnectionReply final : public HttpReply,
                              public std::enable_shared_from_this<ConnectionReply> {
 public:
  ConnectionReply(const std::shared_ptr<HttpConnection>& connection,
                  boost::asio::thread_pool& workers, uint64_t request);
  ~ConnectionReply() override;
  void send(HttpResponse response) override;
  void begin_stream() override;
  void write(std::string piece) override;
  void end() override;
  void post(std::function<void()> task) override;
  void on_gone(std::function<void()> callback) override;
  void client_gone();

 private:
  void to_connection(std::function<void(HttpConnection&)> action);

  const std::weak_ptr<HttpConnection> connection_;
  const boost::asio::ip::tcp::socket::executor_type sockets_;
  const boost::asio::strand<boost::asio::thread_pool::executor_type> strand_;
  const uint64_t request_;
  std::atomic<bool> has_ended_{false};
  std::mutex mutex_;
  bool is_gone_ = false;            // guarded by mutex_
  std::function<void()> callback_;  // guarded by mutex_
};

}  // namespace nibble
