#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace nibble {

/// A port that was free a moment ago, or 0; children start too early for the parent to host the
/// store.
inline int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return 0;
  }
  close(fd);
  return ntohs(address.sin_port);
}

}  // namespace nibble
