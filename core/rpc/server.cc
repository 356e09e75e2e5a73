#include "core/rpc/server.h"

#include <arpa/inet.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/base/fail.h"
#include "core/rpc/grpc_log.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kDestructorWait{1'000};

bool is_loopback(const std::string& host) {
  in_addr v4{};
  if (host == "localhost" || host == "::1" || host == "[::1]") return true;
  return ::inet_pton(AF_INET, host.c_str(), &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
}

std::string join_address(const std::string& host, int port) {
  const bool needs_brackets = host.find(':') != std::string::npos && host[0] != '[';
  return needs_brackets ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

// gRPC does not say why; the system does.
std::string why_not_listen(std::string host, int port) {
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
      error != 0) {
    return fmt::format("{}; give an address of this machine", ::gai_strerror(error));
  }
  const int fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const bool is_bound = ::bind(fd, found->ai_addr, found->ai_addrlen) == 0;
  const int error = errno;
  ::close(fd);
  ::freeaddrinfo(found);
  if (is_bound) return "the certificates do not match";
  if (error == EADDRINUSE) return "the port is in use; choose another, or 0 for any free one";
  return fmt::format("{}; choose another address or port", std::strerror(error));
}

void check(const RpcServerOptions& options) {
  if (options.port < 0 || options.port > 65535) {
    fail(ErrorCode::kInvalidArgument, "port {} is not between 0 and 65535", options.port);
  }
  if (options.host.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "the host to listen on is empty; 0.0.0.0 means every address");
  }
  if (!options.tls && options.plain_text == PlainText::kLoopbackOnly &&
      !is_loopback(options.host)) {
    fail(ErrorCode::kInvalidArgument,
         "will not listen on '{}' without TLS: anyone who reaches it could steer the run; give "
         "certificates, listen on 127.0.0.1, or allow plain text explicitly",
         options.host);
  }
}

void set_limits(grpc::ServerBuilder& builder, const RpcServerOptions& options) {
  const RpcLimits& limits = options.limits;
  builder.SetMaxReceiveMessageSize(limits.max_message_bytes);
  builder.SetMaxSendMessageSize(limits.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // or two servers share one port
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                             static_cast<int>(limits.keepalive.count()));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             static_cast<int>(limits.keepalive_timeout.count()));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Twice as often as clients ping, so that none is cut off for pinging too much.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             static_cast<int>(limits.keepalive.count() / 2));
  grpc::ResourceQuota quota("nibble");
  quota.SetMaxThreads(options.max_threads);
  builder.SetResourceQuota(quota);
}

}  // namespace

RpcServer::RpcServer(const RpcServerOptions& options, std::span<grpc::Service* const> services) {
  route_grpc_log();
  check(options);
  NIBBLE_CHECK(!services.empty(), "a server without services does not start");
  grpc::ServerBuilder builder;
  set_limits(builder, options);
  const std::string wanted = join_address(options.host, options.port);
  const auto credentials =
      options.tls ? server_credentials(*options.tls) : grpc::InsecureServerCredentials();
  builder.AddListeningPort(wanted, credentials, &port_);
  for (grpc::Service* service : services) builder.RegisterService(service);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    fail(ErrorCode::kResourceExhausted, "cannot listen on {}: {}", wanted,
         why_not_listen(options.host, options.port));
  }
  address_ = join_address(options.host, port_);
}

RpcServer::~RpcServer() { shutdown(kDestructorWait); }

void RpcServer::shutdown(std::chrono::milliseconds timeout) {
  server_->Shutdown(std::chrono::system_clock::now() + timeout);
}

}  // namespace nibble
