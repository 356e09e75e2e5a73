#include "core/rpc/tls.h"

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <string>
#include <string_view>

#include "core/base/fail.h"
#include "core/base/file.h"

namespace nibble {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;

std::string read_pem(const std::filesystem::path& path, std::string_view kind) {
  std::string text = read_file(path, kMaxPemBytes);
  const size_t begin = text.find("-----BEGIN ");
  const std::string_view from_begin =
      begin == std::string::npos ? std::string_view() : std::string_view(text).substr(begin);
  const std::string_view first_line = from_begin.substr(0, from_begin.find('\n'));
  if (first_line.find(kind) == std::string_view::npos) {
    fail(ErrorCode::kInvalidArgument, "'{}' holds no PEM block of kind {}", path.string(), kind);
  }
  return text;
}

}  // namespace

std::shared_ptr<grpc::ChannelCredentials> client_credentials(const TlsFiles& files) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = read_pem(files.authority, "CERTIFICATE");
  options.pem_private_key = read_pem(files.key, "PRIVATE KEY");
  options.pem_cert_chain = read_pem(files.certificate, "CERTIFICATE");
  return grpc::SslCredentials(options);
}

std::shared_ptr<grpc::ServerCredentials> server_credentials(const TlsFiles& files) {
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = read_pem(files.authority, "CERTIFICATE");
  options.pem_key_cert_pairs.push_back(
      {read_pem(files.key, "PRIVATE KEY"), read_pem(files.certificate, "CERTIFICATE")});
  return grpc::SslServerCredentials(options);
}

}  // namespace nibble
