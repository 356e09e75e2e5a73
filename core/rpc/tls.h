#pragma once

#include <filesystem>
#include <memory>

namespace grpc {
class ChannelCredentials;
class ServerCredentials;
}  // namespace grpc

namespace nibble {

/// PEM files of one side of a mutual TLS connection. Both sides present a certificate that the
/// other checks against `authority`.
struct TlsFiles {
  std::filesystem::path certificate;  ///< own chain, leaf first
  std::filesystem::path key;          ///< its private key
  std::filesystem::path authority;    ///< whom to trust; the job's own CA, not the system's
};

/// Credentials from the files; a server refuses clients without a certificate of the authority.
/// Throws Error{kNotFound} or Error{kInvalidArgument} naming the file that is missing or no PEM.
std::shared_ptr<grpc::ChannelCredentials> client_credentials(const TlsFiles& files);
std::shared_ptr<grpc::ServerCredentials> server_credentials(const TlsFiles& files);

}  // namespace nibble
