// One process of a fan-out over plain TCP: sends bytes to one or several receivers, or receives
// them and forwards each chunk once it is there whole. fanout_netns.sh starts them, one a
// namespace.
//   chain_relay send --bytes N --chunk N --to IP:PORT [--to IP:PORT ...]
//   chain_relay receive --listen IP:PORT --bytes N --chunk N [--to IP:PORT]
// Every process prints one JSON line: monotonic times (one clock for all processes of a machine)
// and SHA-256 of what it sent or received. A receiver says one byte upstream when everybody behind
// it is connected; the sender's time starts when all its receivers have said so.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <future>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "benchmarks/figure.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/sha256.h"
#include "core/quant/hash.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

// What a relay has sent and not yet got through is what its own acknowledgements queue behind: at
// 256 KiB the link into it stalls, and a chain with chunks of 4 MB took 7 to 15 % longer.
constexpr int kSendBufferBytes = 64 << 10;
constexpr int kReceiveBufferBytes = 1 << 20;
constexpr std::byte kReady{1};

int64_t monotonic_ns() { return SteadyClock::now().time_since_epoch() / 1ns; }

/// Owns one non-blocking TCP socket.
class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket() {
    if (fd_ >= 0) (void)close(fd_);
  }
  int fd() const { return fd_; }

  void send_all(std::span<const std::byte> bytes, Deadline deadline) const {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent > 0) {
        bytes = bytes.subspan(static_cast<size_t>(sent));
      } else {
        wait_again(POLLOUT, deadline, "sending");
      }
    }
  }

  void receive_all(std::span<std::byte> bytes, Deadline deadline) const {
    while (!bytes.empty()) {
      const ssize_t got = ::recv(fd_, bytes.data(), bytes.size(), 0);
      if (got == 0) fail(ErrorCode::kUnavailable, "the peer closed its end too early");
      if (got > 0) {
        bytes = bytes.subspan(static_cast<size_t>(got));
      } else {
        wait_again(POLLIN, deadline, "receiving");
      }
    }
  }

  /// After a call that set errno: waits until it can be tried again.
  void wait_again(short events, Deadline deadline, const char* doing) const {
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
      fail(ErrorCode::kUnavailable, "{}: {}", doing, strerror(errno));
    }
    pollfd poll_fd{fd_, events, 0};
    if (poll(&poll_fd, 1, static_cast<int>(deadline.remaining().count())) == 0) {
      fail(ErrorCode::kDeadlineExceeded, "{} took past the deadline", doing);
    }
  }

 private:
  int fd_;
};

sockaddr_in parse_address(const std::string& text) {
  const size_t colon = text.find(':');
  sockaddr_in address{};
  address.sin_family = AF_INET;
  const int port = colon == std::string::npos ? 0 : std::atoi(text.c_str() + colon + 1);
  if (port < 1 || port > 65535 ||
      inet_pton(AF_INET, text.substr(0, colon).c_str(), &address.sin_addr) != 1) {
    fail(ErrorCode::kInvalidArgument, "'{}' is not IP:PORT", text);
  }
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

void set_option(const Socket& socket, int level, int option, int value) {
  if (setsockopt(socket.fd(), level, option, &value, sizeof value) != 0) {
    fail(ErrorCode::kInternal, "setsockopt: {}", strerror(errno));
  }
}

Socket make_socket() {
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (socket.fd() < 0) fail(ErrorCode::kInternal, "socket: {}", strerror(errno));
  set_option(socket, SOL_SOCKET, SO_SNDBUF, kSendBufferBytes);
  set_option(socket, SOL_SOCKET, SO_RCVBUF, kReceiveBufferBytes);
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  return socket;
}

Socket listen_at(const std::string& text) {
  const sockaddr_in address = parse_address(text);
  Socket socket = make_socket();
  set_option(socket, SOL_SOCKET, SO_REUSEADDR, 1);
  if (bind(socket.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(socket.fd(), 1) != 0) {
    fail(ErrorCode::kInvalidArgument, "cannot listen at {}: {}", text, strerror(errno));
  }
  return socket;
}

Socket accept_one(const Socket& listener, Deadline deadline) {
  while (true) {
    const int fd = accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) return Socket(fd);
    listener.wait_again(POLLIN, deadline, "accepting");
  }
}

// 0, or the errno of the attempt.
int try_connect(const Socket& socket, const sockaddr_in& address, Deadline deadline) {
  if (connect(socket.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    return 0;
  }
  if (errno != EINPROGRESS) return errno;
  pollfd poll_fd{socket.fd(), POLLOUT, 0};
  if (poll(&poll_fd, 1, static_cast<int>(deadline.remaining().count())) == 0) return ETIMEDOUT;
  int error = 0;
  socklen_t size = sizeof error;
  (void)getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error;
}

// Tries again until somebody listens, and waits for its ready byte.
Socket connect_to(const std::string& text, Deadline deadline) {
  const sockaddr_in address = parse_address(text);
  while (true) {
    Socket socket = make_socket();
    const int error = try_connect(socket, address, deadline);
    if (error == 0) {
      std::byte ready{};
      socket.receive_all(std::span(&ready, 1), deadline);
      return socket;
    }
    if (deadline.expired()) {
      fail(ErrorCode::kDeadlineExceeded, "nobody listens at {}: {}", text, strerror(error));
    }
    std::this_thread::sleep_for(10ms);  // the receiver's process has not started yet
  }
}

struct RelayFlags {
  std::string listen;
  std::vector<std::string> to;
  int64_t bytes = 0;
  int64_t chunk_bytes = 0;
  int64_t timeout_s = 60;
};

std::string sha256_of(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.finish();
}

// Bytes that no shift or repetition of themselves equals.
std::vector<std::byte> payload(int64_t size) {
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t word = quant::mix64(at + 1);
    std::memcpy(&bytes[at], &word, std::min(sizeof word, bytes.size() - at));
  }
  return bytes;
}

void run_send(const RelayFlags& flags) {
  const Deadline deadline = Deadline::after(std::chrono::seconds(flags.timeout_s));
  const std::vector<std::byte> bytes = payload(flags.bytes);
  std::vector<Socket> receivers;
  for (const std::string& to : flags.to) receivers.push_back(connect_to(to, deadline));
  const int64_t start_ns = monotonic_ns();
  std::vector<std::future<void>> sends;
  sends.reserve(receivers.size());
  for (const Socket& socket : receivers) {
    sends.push_back(std::async(std::launch::async, [&] { socket.send_all(bytes, deadline); }));
  }
  for (auto& send : sends) send.get();
  Figure("chain_relay")
      .set("role", "send")
      .set("start_ns", start_ns)
      .set("bytes", bytes.size())
      .set("sha256", sha256_of(bytes))
      .print();
}

/// Bytes that have arrived, in whole chunks. One thread adds, one waits.
class Arrived {
 public:
  void set(size_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_ = bytes;
    changed_.notify_one();
  }
  /// More than `have`; throws Error{kDeadlineExceeded}.
  size_t wait_past(size_t have, Deadline deadline) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline.time(), [&] { return bytes_ > have; })) {
      fail(ErrorCode::kDeadlineExceeded, "no byte past {} came before the deadline", have);
    }
    return bytes_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t bytes_ = 0;  // guarded by mutex_
};

void run_receive(const RelayFlags& flags) {
  const Deadline deadline = Deadline::after(std::chrono::seconds(flags.timeout_s));
  std::vector<std::byte> bytes(static_cast<size_t>(flags.bytes));
  const Socket listener = listen_at(flags.listen);
  std::vector<Socket> next;
  for (const std::string& to : flags.to) next.push_back(connect_to(to, deadline));
  const Socket upstream = accept_one(listener, deadline);
  upstream.send_all(std::span(&kReady, 1), deadline);
  Arrived arrived;
  auto forward = std::async(std::launch::async, [&] {
    for (size_t sent = 0; !next.empty() && sent < bytes.size();) {
      const size_t end = arrived.wait_past(sent, deadline);
      next.front().send_all(std::span(bytes).subspan(sent, end - sent), deadline);
      sent = end;
    }
  });
  for (size_t at = 0; at < bytes.size();) {
    const size_t size = std::min(static_cast<size_t>(flags.chunk_bytes), bytes.size() - at);
    upstream.receive_all(std::span(bytes).subspan(at, size), deadline);
    at += size;
    arrived.set(at);
  }
  const int64_t end_ns = monotonic_ns();
  forward.get();
  Figure("chain_relay")
      .set("role", "receive")
      .set("end_ns", end_ns)
      .set("bytes", bytes.size())
      .set("sha256", sha256_of(bytes))
      .print();
}

void add_flags(CLI::App& command, RelayFlags& flags) {
  constexpr int64_t kMostBytes = int64_t{1} << 30;
  command.add_option("--bytes", flags.bytes, "of the whole payload")
      ->required()
      ->check(CLI::Range(int64_t{1}, kMostBytes));
  command.add_option("--chunk", flags.chunk_bytes, "bytes that are forwarded together")
      ->required()
      ->check(CLI::Range(int64_t{1}, kMostBytes));
  command.add_option("--timeout-s", flags.timeout_s, "for everything")
      ->check(CLI::Range(int64_t{1}, int64_t{3600}));
}

int run(int argc, char** argv) {
  CLI::App app("One process of a fan-out over TCP; see fanout_netns.sh", "chain_relay");
  app.require_subcommand(1);
  RelayFlags flags;
  CLI::App* send = app.add_subcommand("send", "send the payload to every --to");
  add_flags(*send, flags);
  send->add_option("--to", flags.to, "IP:PORT")->required();
  CLI::App* receive = app.add_subcommand("receive", "receive it, and forward it to --to");
  add_flags(*receive, flags);
  receive->add_option("--listen", flags.listen, "IP:PORT")->required();
  receive->add_option("--to", flags.to, "IP:PORT")->expected(1);
  CLI11_PARSE(app, argc, argv);
  send->parsed() ? run_send(flags) : run_receive(flags);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  try {
    return nibble::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "chain_relay: %s\n", error.what());
    return 1;
  }
}
