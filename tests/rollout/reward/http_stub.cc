#include "tests/rollout/reward/http_stub.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

#include "core/base/fail.h"

namespace nibble {
namespace {

sockaddr_in loopback() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/// The body of the request that comes on `connection`; what came of it if the client goes.
std::string read_body(int connection) {
  std::string text;
  size_t end = std::string::npos;  // of what is to come
  char buffer[1 << 16];
  while (text.size() < end) {
    const ssize_t count = ::recv(connection, buffer, sizeof buffer, 0);
    if (count <= 0) break;
    text.append(buffer, static_cast<size_t>(count));
    const size_t head = text.find("\r\n\r\n");
    const size_t length = text.find("Content-Length: ");
    if (head == std::string::npos || length > head) continue;
    end = head + 4 + std::strtoull(text.c_str() + length + 16, nullptr, 10);
  }
  const size_t head = text.find("\r\n\r\n");
  return head == std::string::npos ? "" : text.substr(head + 4);
}

}  // namespace

StubAnswer answer_with(int status, const std::string& body) {
  return {fmt::format("HTTP/1.1 {} x\r\nContent-Length: {}\r\n\r\n{}", status, body.size(), body)};
}

HttpStub::HttpStub(Answer answer)
    : answer_(std::move(answer)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  const sockaddr_in address = loopback();
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  NIBBLE_CHECK(::bind(listener_, name, sizeof address) == 0 && ::listen(listener_, 8) == 0,
               "no port for a stub");
  thread_ = std::thread([this] { serve(); });
}

HttpStub::~HttpStub() {
  ::shutdown(listener_, SHUT_RDWR);  // ends accept()
  thread_.join();
  ::close(listener_);
}

std::string HttpStub::url() const {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
  return fmt::format("http://127.0.0.1:{}", ntohs(address.sin_port));
}

void HttpStub::serve() {
  while (true) {
    const int connection = ::accept(listener_, nullptr, nullptr);
    if (connection < 0) return;
    serve_one(connection);
    ::close(connection);
  }
}

void HttpStub::serve_one(int connection) {
  const std::string body = read_body(connection);
  const StubAnswer answer = answer_(body, num_requests_++);
  if (answer.holds) {
    char byte = 0;
    while (::recv(connection, &byte, 1, 0) > 0) {
    }
  }
  std::string_view rest = answer.text;
  while (!rest.empty()) {
    const ssize_t count = ::send(connection, rest.data(), rest.size(), MSG_NOSIGNAL);
    if (count <= 0) return;
    rest.remove_prefix(static_cast<size_t>(count));
  }
}

}  // namespace nibble
