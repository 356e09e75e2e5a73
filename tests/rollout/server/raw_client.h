#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// A client that may send anything. Nothing waits for longer than a minute.
class RawClient {
 public:
  explicit RawClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval most{60, 0};
    EXPECT_EQ(::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most), 0);
    EXPECT_EQ(::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most), 0);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;
  ~RawClient() { ::close(fd_); }

  /// False if the server has closed meanwhile.
  bool send(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t count = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }
  void end_sending() const { (void)::shutdown(fd_, SHUT_WR); }

  /// What comes within `wait`: empty if the server has closed, nullopt if nothing comes.
  std::optional<std::string> read_some(std::chrono::milliseconds wait) const {
    pollfd waiting{fd_, POLLIN, 0};
    if (::poll(&waiting, 1, static_cast<int>(wait.count())) == 0) return std::nullopt;
    char piece[16 << 10];
    const ssize_t count = ::recv(fd_, piece, sizeof piece, 0);
    return std::string(piece, count > 0 ? static_cast<size_t>(count) : 0);
  }
  /// Everything until the server closes; fails if it does not.
  std::string read_to_end() const {
    std::string text;
    while (true) {
      const auto piece = read_some(std::chrono::seconds(60));
      if (!piece) {
        ADD_FAILURE() << "the server neither answers nor closes";
        return text;
      }
      if (piece->empty()) return text;
      text += *piece;
    }
  }

 private:
  const int fd_;
};

}  // namespace nibble
