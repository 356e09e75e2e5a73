#include "rollout/server/http_connection.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "core/base/log.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

// A client that was refused may still be sending; closing at once would cost it the answer.
constexpr std::chrono::milliseconds kLinger{2'000};
// Beside the head, what one read of a body may hold.
constexpr size_t kReadBytes = 64 << 10;
// How often a client that has sent its next request already is looked for.
constexpr std::chrono::milliseconds kLook{500};

bool is_too_long_head(const error_code& error) {
  return error == http::error::header_limit || error == http::error::buffer_overflow;
}

struct HeadProblem {
  int status;
  std::string message;
};

// What another reader of the same bytes, a proxy, might understand otherwise (RFC 9112, 3.2, 6.3),
// and what we would read as something that it is not.
std::optional<HeadProblem> framing_problem(const http::fields& head, bool is_chunked) {
  if (head.count(http::field::transfer_encoding) > 0 && !is_chunked) {
    return HeadProblem{400, "Transfer-Encoding is not chunked: where the body ends is not said"};
  }
  if (head.count(http::field::host) > 1) return HeadProblem{400, "more than one Host"};
  const auto coding = head[http::field::content_encoding];
  if (!coding.empty() && !boost::beast::iequals(coding, "identity")) {
    return HeadProblem{415, "Content-Encoding: send the body as it is"};
  }
  const auto expect = head[http::field::expect];
  if (!expect.empty() && !boost::beast::iequals(expect, "100-continue")) {
    return HeadProblem{417, "Expect: only 100-continue is known"};
  }
  return std::nullopt;
}

}  // namespace

HttpConnection::HttpConnection(uint64_t id, asio::ip::tcp::socket socket,
                               const ConnectionHost& host)
    : id_(id),
      host_(host),
      socket_(std::move(socket)),
      timer_(socket_.get_executor()),
      watch_timer_(socket_.get_executor()),
      answer_timer_(socket_.get_executor()),
      buffer_(static_cast<size_t>(host.options.max_head_bytes) + kReadBytes) {}

HttpConnection::~HttpConnection() { close(); }

void HttpConnection::close() {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  error_code ignored;  // closing what the client has reset already
  socket_.close(ignored);
  disarm();
  watch_timer_.cancel();
  answer_timer_.cancel();
  if (const auto reply = reply_.lock()) reply->client_gone();
  host_.closed(id_);
}

void HttpConnection::drain() {
  is_draining_ = true;
  if (phase_ == Phase::kIdle) close();
}

void HttpConnection::arm(std::chrono::milliseconds after) {
  const uint64_t epoch = ++timer_epoch_;
  timer_.expires_after(after);
  timer_.async_wait([weak = weak_from_this(), epoch](const error_code& error) {
    const auto self = weak.lock();
    if (!error && self && self->timer_epoch_ == epoch) self->time_is_up();
  });
}

void HttpConnection::disarm() {
  ++timer_epoch_;
  timer_.cancel();
}

void HttpConnection::time_is_up() {
  if (phase_ != Phase::kReading) return close();
  is_late_ = true;
  error_code ignored;
  socket_.cancel(ignored);  // the read ends, and answers 408
}

void HttpConnection::read_request() {
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(host_.options.max_head_bytes));
  parser_->body_limit(static_cast<uint64_t>(host_.options.max_body_bytes));
  unsent_.clear();
  has_all_ = false;
  has_begun_ = false;
  is_late_ = false;
  keeps_alive_ = false;
  if (buffer_.size() > 0) return read_head();
  phase_ = Phase::kIdle;
  arm(host_.options.idle_timeout);
  socket_.async_wait(asio::ip::tcp::socket::wait_read,
                     [self = shared_from_this()](const error_code& error) {
                       if (self->phase_ == Phase::kClosed) return;
                       if (error) return self->close();
                       self->read_head();
                     });
}

void HttpConnection::read_head() {
  phase_ = Phase::kReading;
  arm(host_.options.head_timeout);
  http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](const error_code& error, size_t) { self->head_read(error); });
}

HttpRequest HttpConnection::head() const {
  const auto& message = parser_->get();
  std::string target(message.target());
  // A proxy's form: what follows scheme and host.
  if (const size_t host = target.find("://"); host != std::string::npos && target[0] != '/') {
    const size_t path = target.find('/', host + 3);
    target = path == std::string::npos ? "/" : target.substr(path);
  }
  HttpRequest request;
  request.method = std::string(message.method_string());
  const size_t mark = target.find('?');
  request.path = target.substr(0, mark);
  if (mark != std::string::npos) request.query = target.substr(mark + 1);
  request.authorization = std::string(message[http::field::authorization]);
  request.num_connections = host_.num_connections;
  return request;
}

void HttpConnection::head_read(const error_code& error) {
  if (phase_ == Phase::kClosed) return;
  if (error) return reading_failed(error);
  is_http_1_0_ = parser_->get().version() < 11;
  // Where its end is not certain, what follows on the connection is nobody's.
  if (const auto problem = framing_problem(parser_->get(), parser_->chunked())) {
    keeps_alive_ = false;
    return refuse(host_.handlers.make_error(problem->status, problem->message));
  }
  if (const auto refusal = host_.handlers.screen(head())) {
    keeps_alive_ = parser_->is_done() && parser_->keep_alive();
    return refuse(*refusal);
  }
  const auto expect = parser_->get()[http::field::expect];
  if (parser_->is_done() || !boost::beast::iequals(expect, "100-continue")) return read_body();
  unsent_ = "HTTP/1.1 100 Continue\r\n\r\n";
  in_flight_ = std::exchange(unsent_, {});
  asio::async_write(socket_, asio::buffer(in_flight_),
                    [self = shared_from_this()](const error_code& failed, size_t) {
                      if (self->phase_ == Phase::kClosed) return;
                      if (failed) return self->close();
                      self->read_body();
                    });
}

void HttpConnection::read_body() {
  arm(host_.options.body_timeout);
  http::async_read(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](const error_code& error, size_t) { self->body_read(error); });
}

void HttpConnection::body_read(const error_code& error) {
  if (phase_ == Phase::kClosed) return;
  if (error) return reading_failed(error);
  dispatch();
}

void HttpConnection::reading_failed(const error_code& error) {
  const auto refuse_with = [this](int status, const std::string& message) {
    refuse(host_.handlers.make_error(status, message));
  };
  if (is_late_) return refuse_with(408, "the request did not arrive in time");
  if (is_too_long_head(error)) {
    return refuse_with(431, fmt::format("the request's head has more than {} bytes",
                                        host_.options.max_head_bytes));
  }
  if (error == http::error::body_limit) {
    return refuse_with(413, fmt::format("the request's body has more than {} bytes",
                                        host_.options.max_body_bytes));
  }
  if (error.category() != http::make_error_code(http::error::bad_method).category() ||
      error == http::error::end_of_stream) {
    return close();
  }
  refuse_with(400, fmt::format("not an HTTP request: {}", error.message()));
}

void HttpConnection::dispatch() {
  phase_ = Phase::kWorking;
  disarm();
  keeps_alive_ = parser_->keep_alive();
  HttpRequest request = head();
  request.body = std::move(parser_->get().body());
  const auto reply =
      std::make_shared<ConnectionReply>(shared_from_this(), host_.workers, ++request_);
  reply_ = reply;
  // By hand-over: a std::function would have to be copied with the body.
  auto held = std::make_shared<HttpRequest>(std::move(request));
  reply->post([reply, held, &host = host_] {
    try {
      host.handlers.handle(*held, reply);
    } catch (const std::exception& error) {
      get_logger("serve")->error("a request failed: {}", error.what());
      reply->send(host.handlers.make_error(500, "the server failed to answer; see its log"));
    }
  });
  watch_client();
  arm_answer();
}

// Whoever answers has deadlines of his own; this is for one who hangs.
void HttpConnection::arm_answer() {
  answer_timer_.expires_after(host_.options.answer_timeout);
  answer_timer_.async_wait([weak = weak_from_this(), request = request_](const error_code& error) {
    const auto self = weak.lock();
    if (error || !self || self->request_ != request || self->phase_ != Phase::kWorking) return;
    self->answer_is_late();
  });
}

void HttpConnection::answer_is_late() {
  if (is_writing_ && has_all_) return;  // a client that reads slowly has the write timeout
  if (has_begun_) return close();
  ++request_;  // what comes after all is nobody's
  if (const auto reply = reply_.lock()) reply->client_gone();
  keeps_alive_ = false;
  refuse(host_.handlers.make_error(504, "the server did not answer in time"));
}

// While a request is worked on, a readable socket means a client that has gone, or one that sends
// its next request early, which can wait.
void HttpConnection::watch_client() {
  if (buffer_.size() > 0) return look_for_client_later();
  socket_.async_wait(asio::ip::tcp::socket::wait_read,
                     [self = shared_from_this(), request = request_](const error_code& error) {
                       if (error || self->phase_ != Phase::kWorking || self->request_ != request)
                         return;
                       char byte = 0;
                       error_code failed;
                       const size_t count = self->socket_.receive(
                           asio::buffer(&byte, 1), asio::ip::tcp::socket::message_peek, failed);
                       if (failed == asio::error::would_block) return self->watch_client();
                       if (failed || count == 0) return self->close();
                       self->look_for_client_later();
                     });
}

// Behind what it has sent its end is not readable: that is asked for now and then.
void HttpConnection::look_for_client_later() {
  watch_timer_.expires_after(kLook);
  watch_timer_.async_wait([weak = weak_from_this(), request = request_](const error_code& error) {
    const auto self = weak.lock();
    if (error || !self || self->phase_ != Phase::kWorking || self->request_ != request) return;
    pollfd ends{self->socket_.native_handle(), POLLRDHUP, 0};
    const bool has_gone =
        ::poll(&ends, 1, 0) > 0 && (ends.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
    has_gone ? self->close() : self->look_for_client_later();
  });
}

std::string HttpConnection::head_of(const HttpResponse& response,
                                    std::optional<int64_t> body_bytes) {
  const bool will_close = !keeps_alive_ || is_draining_ || (is_http_1_0_ && !body_bytes);
  keeps_alive_ = !will_close;
  http::response_header<> head;
  head.result(static_cast<unsigned>(response.status));
  head.version(11);
  head.set(http::field::server, "nibble");
  head.set(http::field::content_type, response.content_type);
  head.set(http::field::cache_control, "no-store");
  if (!response.allow.empty()) head.set(http::field::allow, response.allow);
  if (response.status == 401) head.set(http::field::www_authenticate, "Bearer");
  if (response.retry_after_s > 0) {
    head.set(http::field::retry_after, std::to_string(response.retry_after_s));
  }
  if (body_bytes) {
    head.set(http::field::content_length, std::to_string(*body_bytes));
  } else if (!is_http_1_0_) {
    head.set(http::field::transfer_encoding, "chunked");
  }
  head.set(http::field::connection, will_close ? "close" : "keep-alive");
  std::ostringstream text;
  text << head;
  return text.str();
}

std::string HttpConnection::chunk_of(const std::string& piece) const {
  return is_http_1_0_ ? piece : fmt::format("{:x}\r\n{}\r\n", piece.size(), piece);
}

void HttpConnection::refuse(const HttpResponse& response) {
  phase_ = Phase::kWorking;
  disarm();
  const auto size = static_cast<int64_t>(response.body.size());
  const bool wants_body = parser_->get().method() != http::verb::head;
  begin_answer(head_of(response, size) + (wants_body ? response.body : ""), true);
}

void HttpConnection::begin_answer(const std::string& head, bool is_last) {
  unsent_ += head;
  has_all_ = is_last;
  has_begun_ = true;
  if (!is_writing_) write_more();
}

void HttpConnection::add_to_answer(const std::string& bytes, bool is_last) {
  if (std::ssize(unsent_) + std::ssize(bytes) > host_.options.max_unsent_bytes) return close();
  begin_answer(bytes, is_last);
}

void HttpConnection::drop_answer() { close(); }

void HttpConnection::write_more() {
  is_writing_ = true;
  in_flight_ = std::exchange(unsent_, {});
  arm(host_.options.write_timeout);
  // In parts: the deadline is for each, so that a large answer has time as long as it moves.
  asio::async_write(
      socket_, asio::buffer(in_flight_),
      [self = shared_from_this()](const error_code& error, size_t bytes) -> size_t {
        if (error) return 0;
        if (bytes > 0) self->arm(self->host_.options.write_timeout);
        return kReadBytes;
      },
      [self = shared_from_this()](const error_code& error, size_t) { self->written(error); });
}

void HttpConnection::written(const error_code& error) {
  is_writing_ = false;
  if (phase_ == Phase::kClosed) return;
  if (error) return close();
  if (!unsent_.empty()) return write_more();
  disarm();
  if (has_all_) finish_request();
}

void HttpConnection::finish_request() {
  reply_.reset();
  error_code ignored;
  socket_.cancel(ignored);  // the wait of watch_client()
  if (!keeps_alive_ || is_draining_) return linger();
  read_request();
}

void HttpConnection::linger() {
  phase_ = Phase::kLingering;
  error_code failed;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, failed);
  if (failed) return close();
  arm(kLinger);
  read_leftovers();
}

void HttpConnection::read_leftovers() {
  buffer_.clear();
  socket_.async_read_some(buffer_.prepare(kReadBytes / 2),
                          [self = shared_from_this()](const error_code& error, size_t) {
                            if (self->phase_ != Phase::kLingering) return;
                            if (error) return self->close();
                            self->read_leftovers();
                          });
}

}  // namespace nibble
