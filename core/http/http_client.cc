#include "core/http/http_client.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>

#include "core/base/fail.h"
#include "core/http/http_request.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr uint64_t kMaxAnswerBytes = 16 << 20;

[[noreturn]] void fail_fetch(const HttpTarget& target, const std::string& path,
                             const error_code& error, std::chrono::milliseconds timeout) {
  if (error == beast::error::timeout) {
    fail(ErrorCode::kDeadlineExceeded, "{} of {} did not answer within {} ms", path, target.name(),
         timeout.count());
  }
  fail(ErrorCode::kUnavailable, "{} of {}: {}", path, target.name(), error.message());
}

bool is_port(const std::string& text) {
  if (text.empty() || text.size() > 5) return false;
  if (!std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    return false;
  }
  const int port = std::stoi(text);
  return port >= 1 && port <= 65'535;
}

}  // namespace

HttpTarget parse_http_url(const std::string& flag, const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  HttpTarget target;
  std::string rest = url.starts_with(kScheme) ? url.substr(kScheme.size()) : "";
  if (rest.ends_with('/')) rest.pop_back();
  const size_t colon = rest.rfind(':');
  target.host = rest.substr(0, colon);
  if (colon != std::string::npos) target.port = rest.substr(colon + 1);
  if (target.host.empty() || target.host.find_first_of(":/?#@ ") != std::string::npos ||
      !is_port(target.port)) {
    fail(ErrorCode::kInvalidArgument, "{} is '{}'; it must be http://HOST:PORT", flag, url);
  }
  return target;
}

HttpAnswer fetch(const HttpTarget& target, const std::string& path, const std::string& body,
                 std::chrono::milliseconds timeout) {
  asio::io_context context{1};
  beast::tcp_stream stream(context);
  error_code failed;
  const auto endpoints = asio::ip::tcp::resolver(context).resolve(target.host, target.port, failed);
  if (failed) fail_fetch(target, path, failed, timeout);
  const auto request = http_request(target, path, body);
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaxAnswerBytes);
  beast::flat_buffer buffer;
  // Each step begins the next one; the deadline is that of all of them.
  const auto keep = [&failed](const error_code& error) { failed = error; };
  const auto read_body = [&](const error_code& error, size_t) {
    if (error || parser.is_done()) return keep(error);
    http::async_read(stream, buffer, parser, [&](const error_code& end, size_t) { keep(end); });
  };
  // The header on its own: Beast 1.74 forgets that a length is above the limit where bytes of the
  // body came with it.
  const auto read = [&](const error_code& error, size_t) {
    if (error) return keep(error);
    http::async_read_header(stream, buffer, parser, read_body);
  };
  stream.expires_after(timeout);
  stream.async_connect(endpoints, [&](const error_code& error, const asio::ip::tcp::endpoint&) {
    if (error) return keep(error);
    http::async_write(stream, request, read);
  });
  context.run();
  if (failed) fail_fetch(target, path, failed, timeout);
  return {static_cast<int>(parser.get().result_int()), std::move(parser.get().body())};
}

}  // namespace nibble
