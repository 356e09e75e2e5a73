#include "core/rpc/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <filesystem>

#include "core/base/file.h"
#include "tests/core/rpc/echo_service.h"

namespace nibble::test {
namespace {

namespace fs = std::filesystem;

/// Makes two authorities, each with one certificate for 127.0.0.1, with the openssl command.
class TlsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::string name = (fs::temp_directory_path() / "nibble_tls_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory = name;
    write_file_atomically(directory / "ext", "subjectAltName=IP:127.0.0.1\n");
    for (const std::string who : {"a", "b"}) {
      const std::string ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
      run(fmt::format("openssl req -x509 {} -days 2 -subj /CN=ca-{} -keyout ca{}.key -out ca{}.pem",
                      ec, who, who, who));
      run(fmt::format("openssl req {} -subj /CN=node -keyout {}.key -out {}.csr", ec, who, who));
      run(
          fmt::format("openssl x509 -req -in {}.csr -CA ca{}.pem -CAkey ca{}.key -CAcreateserial "
                      "-days 2 -extfile ext -out {}.pem",
                      who, who, who, who));
    }
  }
  static void TearDownTestSuite() { fs::remove_all(directory); }
  static void run(const std::string& command) {
    const std::string line = fmt::format("cd '{}' && {} 2>log", directory.string(), command);
    ASSERT_EQ(std::system(line.c_str()), 0) << read_file(directory / "log", 1 << 20);
  }
  static TlsFiles files(const std::string& who, const std::string& authority) {
    return {directory / (who + ".pem"), directory / (who + ".key"),
            directory / ("ca" + authority + ".pem")};
  }

  static inline fs::path directory;
  EchoService echo_;
  std::array<grpc::Service*, 1> services_ = {&echo_};
};

TEST_F(TlsTest, BothSidesWithCertificatesOfOneAuthorityTalk) {
  const RpcServer server({.tls = files("a", "a")}, services_);
  EXPECT_EQ(say(make_channel(server.address(), {.tls = files("a", "a")}), echo_request("x")), "x");
}

TEST_F(TlsTest, AClientOfAnotherAuthorityOrInPlainTextIsRefused) {
  const RpcServer server({.tls = files("a", "a")}, services_);
  for (const ChannelOptions& options : {ChannelOptions{.tls = files("b", "a")}, ChannelOptions{}}) {
    const Error error =
        error_of([&] { say(make_channel(server.address(), options), echo_request("x")); });
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable) << error.what();
  }
  EXPECT_EQ(echo_.calls, 0);
}

TEST_F(TlsTest, AServerOfAnotherAuthorityIsNotTrusted) {
  const RpcServer server({.tls = files("b", "a")}, services_);
  const auto channel = make_channel(server.address(), {.tls = files("a", "a")});
  EXPECT_EQ(error_of([&] { say(channel, echo_request("x")); }).code(), ErrorCode::kUnavailable);
}

TEST_F(TlsTest, FilesThatAreMissingOrOfTheWrongKindAreNamed) {
  TlsFiles swapped = files("a", "a");
  std::swap(swapped.key, swapped.certificate);
  EXPECT_THAT(error_of([&] { client_credentials(swapped); }).what(),
              ::testing::HasSubstr("a.pem' holds no PEM block of kind PRIVATE KEY"));
  TlsFiles missing = files("a", "none");
  EXPECT_EQ(error_of([&] { server_credentials(missing); }).code(), ErrorCode::kNotFound);
}

}  // namespace
}  // namespace nibble::test
