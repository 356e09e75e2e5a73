#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "core/rpc/channel.h"
#include "core/rpc/tls.h"

namespace grpc {
class Server;
class Service;
}  // namespace grpc

namespace nibble {

/// Who may connect without TLS.
enum class PlainText { kLoopbackOnly, kAnyAddress };

struct RpcServerOptions {
  std::string host = "127.0.0.1";  ///< an address of this machine, "localhost" or "0.0.0.0"
  int port = 0;                    ///< 0: any free one
  std::optional<TlsFiles> tls = {};
  PlainText plain_text = PlainText::kLoopbackOnly;
  RpcLimits limits = {};
  int max_threads = 64;  ///< calls that run at once; more get RESOURCE_EXHAUSTED
};

/// A running gRPC server. The constructor binds and starts it, the destructor stops it. The
/// services must outlive it. Any thread may call any method.
class RpcServer {
 public:
  /// Throws Error{kInvalidArgument} for a host beyond loopback without TLS (unless kAnyAddress) or
  /// a bad port, Error{kResourceExhausted} if the address cannot be bound because it is in use,
  /// Error{kInternal} without services.
  RpcServer(const RpcServerOptions& options, std::span<grpc::Service* const> services);
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;
  ~RpcServer();

  int port() const { return port_; }
  /// "host:port" as peers on this machine can reach it.
  const std::string& address() const { return address_; }

  /// Refuses new calls, waits up to `timeout` for running ones, then cancels those and returns
  /// when their methods have returned. A second call does nothing.
  void shutdown(std::chrono::milliseconds timeout);

 private:
  std::string address_;  // constant after construction
  int port_ = 0;         // constant after construction
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace nibble
