#include "cli/load_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <limits>
#include <memory>
#include <optional>

#include "cli/completion_stream.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/http/http_request.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::milliseconds kTick{50};
// Of what a server says with a refusal.
constexpr size_t kMaxRefusal = 2'000;

// What the connections of one load share.
struct Load {
  const HttpTarget& target;
  const LoadOptions& options;
  tcp::resolver::results_type endpoints;
  std::span<const std::string> bodies;
  std::vector<LoadAnswer> answers;
  size_t next = 0;  // body that nobody has sent
  int64_t num_answered = 0;
};

/// One client, which goes from request to request. Its operations hold it.
class LoadConnection : public std::enable_shared_from_this<LoadConnection> {
 public:
  LoadConnection(asio::io_context& context, Load& load) : load_(load), stream_(context) {}

  void next() {
    if (load_.next == load_.bodies.size()) return stream_.close();
    number_ = load_.next++;
    request_ = http_request(load_.target, "/v1/completions", load_.bodies[number_]);
    parser_.emplace();
    parser_->body_limit(std::numeric_limits<uint64_t>::max());  // CompletionStream bounds its lines
    answer_ = {};
    events_.emplace();
    refusal_.clear();
    stream_.expires_after(load_.options.request_timeout);
    if (stream_.socket().is_open()) return send();
    buffer_.clear();
    stream_.async_connect(load_.endpoints, [self = shared_from_this()](const error_code& error,
                                                                       const tcp::endpoint&) {
      if (error) return self->give_up(error);
      error_code ignored;  // without it small pieces may only come later
      self->stream_.socket().set_option(tcp::no_delay(true), ignored);
      self->send();
    });
  }

 private:
  void send() {
    clock_.restart_ms();
    http::async_write(stream_, request_,
                      [self = shared_from_this()](const error_code& error, size_t) {
                        if (error) return self->give_up(error);
                        self->read_head();
                      });
  }

  void read_head() {
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = shared_from_this()](const error_code& error, size_t) {
                              if (error) return self->give_up(error);
                              self->read_piece();
                            });
  }

  void read_piece() {
    if (parser_->is_done()) return finish();
    parser_->get().body().data = piece_.data();
    parser_->get().body().size = piece_.size();
    http::async_read_some(stream_, buffer_, *parser_,
                          [self = shared_from_this()](const error_code& error, size_t) {
                            if (error && error != http::error::need_buffer) {
                              return self->give_up(error);
                            }
                            self->take_piece();
                          });
  }

  void take_piece() {
    const std::string_view bytes(piece_.data(), piece_.size() - parser_->get().body().size);
    if (parser_->get().result() != http::status::ok) {
      refusal_ += bytes.substr(0, kMaxRefusal - std::min(kMaxRefusal, refusal_.size()));
      return read_piece();
    }
    try {
      if (events_->push(bytes) > 0) {
        answer_.last_ms = clock_.elapsed_ms();
        if (answer_.first_ms == 0) answer_.first_ms = answer_.last_ms;
      }
    } catch (const Error& error) {
      return fail_with(error.what());
    }
    read_piece();
  }

  void finish() {
    answer_.total_ms = clock_.elapsed_ms();
    const unsigned status = parser_->get().result_int();
    if (status != 200) return fail_with(fmt::format("status {}: {}", status, refusal_));
    if (!events_->has_ended()) return fail_with("the stream ended before [DONE]");
    answer_.num_tokens = events_->num_tokens();
    if (load_.options.keeps_text) answer_.text = events_->text();
    load_.answers[number_] = std::move(answer_);
    ++load_.num_answered;
    if (!parser_->keep_alive()) stream_.close();
    next();
  }

  void give_up(const error_code& error) {
    fail_with(error == beast::error::timeout
                  ? fmt::format("no answer within {} ms", load_.options.request_timeout.count())
                  : error.message());
  }

  void fail_with(const std::string& what) {
    answer_.failure = what;
    load_.answers[number_] = std::move(answer_);
    ++load_.num_answered;
    stream_.close();
    next();
  }

  Load& load_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  std::array<char, 16 << 10> piece_;
  http::request<http::string_body> request_;
  std::optional<http::response_parser<http::buffer_body>> parser_;
  std::optional<CompletionStream> events_;
  std::string refusal_;
  size_t number_ = 0;  // of the request under way
  LoadAnswer answer_;
  Stopwatch clock_;
};

}  // namespace

std::vector<LoadAnswer> run_load(const HttpTarget& target, std::span<const std::string> bodies,
                                 const LoadOptions& options) {
  asio::io_context context{1};
  error_code failed;
  Load load{target, options, tcp::resolver(context).resolve(target.host, target.port, failed),
            bodies, std::vector<LoadAnswer>(bodies.size())};
  if (failed) fail(ErrorCode::kUnavailable, "{}: {}", target.name(), failed.message());
  const auto connections = std::min<int64_t>(options.connections, std::ssize(bodies));
  for (int64_t i = 0; i < connections; ++i) std::make_shared<LoadConnection>(context, load)->next();
  while (!context.stopped()) {
    context.run_for(kTick);
    if (options.on_tick) options.on_tick(load.num_answered);
  }
  return std::move(load.answers);
}

}  // namespace nibble
