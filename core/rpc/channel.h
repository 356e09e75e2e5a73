#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "core/rpc/tls.h"

namespace grpc {
class Channel;
}

namespace nibble {

/// Limits that both ends of a connection must agree on.
struct RpcLimits {
  int max_message_bytes = 64 << 20;
  std::chrono::milliseconds keepalive{10'000};         ///< ping on an idle connection this often
  std::chrono::milliseconds keepalive_timeout{5'000};  ///< no answer to a ping: the peer is gone
};

struct ChannelOptions {
  std::optional<TlsFiles> tls = {};  ///< none: plain text, for loopback or a trusted network
  RpcLimits limits = {};
  /// One attempt to connect. A call that gives up before this reports kDeadlineExceeded, after it
  /// kUnavailable, of a process that is stopped: its kernel still takes the connection.
  std::chrono::milliseconds connect_limit{2'000};
};

/// A channel to "host:port". Connects on first use and again, at most 2 s apart, after a loss;
/// ignores the environment's HTTP proxy. Throws Error{kInvalidArgument} if `address` has no port.
std::shared_ptr<grpc::Channel> make_channel(const std::string& address,
                                            const ChannelOptions& options = {});

}  // namespace nibble
