#include "rollout/server/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <string>

#include "core/base/error.h"
#include "rollout/server/request_error.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

// A plain client: sends bytes, reads to the end.
class Client {
 public:
  explicit Client(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { close(); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void send(std::string_view bytes) const {
    EXPECT_EQ(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL), std::ssize(bytes));
  }
  std::string read_to_end() const {
    std::string text;
    char piece[4096];
    ssize_t count = 0;
    while ((count = ::recv(fd_, piece, sizeof piece, 0)) > 0) {
      text.append(piece, static_cast<size_t>(count));
    }
    return text;
  }

 private:
  int fd_;
};

class HttpServerTest : public ::testing::Test {
 protected:
  using Handle = std::function<void(const HttpRequest&, const std::shared_ptr<HttpReply>&)>;
  void serve(Handle handle, const HttpServerOptions& options = {}) {
    HttpHandlers handlers;
    handlers.screen = [](const HttpRequest&) { return std::nullopt; };
    handlers.handle = std::move(handle);
    handlers.make_error = [](int status, const std::string& message) {
      return error_response(status, message);
    };
    server_.emplace(options, std::move(handlers));
  }
  // Keeps the reply, and hears when nobody waits for it.
  Handle keep() {
    return [this](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
      reply->on_gone([this] {
        const std::lock_guard lock(mutex_);
        is_gone_ = true;
        changed_.notify_all();
      });
      const std::lock_guard lock(mutex_);
      kept_ = reply;
      changed_.notify_all();
    };
  }
  std::string get(std::string_view extra = "Connection: close\r\n") const {
    const Client client(server_->port());
    client.send("GET /x?y=1 HTTP/1.1\r\n" + std::string(extra) + "\r\n");
    return client.read_to_end();
  }
  static std::string body_of(const std::string& answer) {
    return answer.substr(answer.find("\r\n\r\n") + 4);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_gone_ = false;  // guarded by mutex_
  std::optional<HttpServer> server_;
  std::shared_ptr<HttpReply> kept_;  // guarded by mutex_; goes before the server
};

TEST_F(HttpServerTest, AHandlerSeesTheRequestAndAnswersIt) {
  serve([](const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
    HttpResponse response;
    response.status = 418;
    response.body = request.method + " " + request.path + " " + request.body;
    reply->send(response);
  });
  const Client client(server_->port());
  client.send("POST /a?b HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nxyz");
  const std::string answer = client.read_to_end();
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 418 "));
  EXPECT_EQ(body_of(answer), "POST /a xyz");
}

TEST_F(HttpServerTest, AStreamArrivesInChunks) {
  serve([](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
    reply->begin_stream();
    reply->write("one");
    reply->write("");
    reply->post([reply] {
      reply->write("seventeen letters");
      reply->end();
    });
  });
  EXPECT_EQ(body_of(get()), "3\r\none\r\n11\r\nseventeen letters\r\n0\r\n\r\n");
}

TEST_F(HttpServerTest, WhatAHandlerThrowsIsA500) {
  serve([](const HttpRequest&, const std::shared_ptr<HttpReply>&) {
    throw std::runtime_error("a bug");
  });
  EXPECT_TRUE(get().starts_with("HTTP/1.1 500 "));
  EXPECT_TRUE(get().starts_with("HTTP/1.1 500 ")) << "the server goes on";
}

TEST_F(HttpServerTest, AReplyThatIsDroppedClosesTheConnection) {
  serve([](const HttpRequest&, const std::shared_ptr<HttpReply>&) {});
  EXPECT_EQ(get(""), "");
}

TEST_F(HttpServerTest, AReplyHearsThatItsClientHasGone) {
  serve(keep());
  Client client(server_->port());
  client.send("GET / HTTP/1.1\r\n\r\n");
  std::unique_lock lock(mutex_);
  ASSERT_TRUE(changed_.wait_for(lock, 60s, [this] { return kept_ != nullptr; }));
  client.close();
  ASSERT_TRUE(changed_.wait_for(lock, 60s, [this] { return is_gone_; }));
  const auto reply = std::exchange(kept_, nullptr);
  lock.unlock();
  bool is_told_at_once = false;
  reply->on_gone([&] { is_told_at_once = true; });
  EXPECT_TRUE(is_told_at_once);
  reply->send({});  // to nobody
}

TEST_F(HttpServerTest, AClientThatLeavesBehindBytesThatItSentEarlyHasGoneToo) {
  serve(keep());
  for (const bool together : {true, false}) {
    Client client(server_->port());
    const std::string request = "GET /x HTTP/1.1\r\n\r\n";
    client.send(together ? request + "G" : request);
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, 10s, [&] { return kept_ != nullptr; }));
    lock.unlock();
    if (!together) client.send("G");
    client.close();
    lock.lock();
    EXPECT_TRUE(changed_.wait_for(lock, 10s, [&] { return is_gone_; })) << together;
    is_gone_ = false;
    kept_ = nullptr;
  }
}

TEST_F(HttpServerTest, WhoDoesNotAnswerIsNotWaitedForForEver) {
  HttpServerOptions options;
  options.answer_timeout = 200ms;
  serve(keep(), options);
  EXPECT_TRUE(get("").starts_with("HTTP/1.1 504 "));
  kept_->send({});  // too late: nobody's
  const std::lock_guard lock(mutex_);
  EXPECT_TRUE(is_gone_) << "whoever works on it must hear";
}

TEST_F(HttpServerTest, AStreamThatHangsEnds) {
  HttpServerOptions options;
  options.answer_timeout = 200ms;
  serve(
      [this](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
        reply->begin_stream();
        reply->write("begun");
        const std::lock_guard lock(mutex_);
        kept_ = reply;
      },
      options);
  const std::string answer = get("");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 "));
  EXPECT_TRUE(answer.ends_with("begun\r\n")) << answer;
}

TEST_F(HttpServerTest, ATargetMayBeAWholeAddress) {
  serve([](const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
    HttpResponse response;
    response.body = request.path;
    reply->send(response);
  });
  const Client client(server_->port());
  client.send("GET http://host:80/a/b?c HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(body_of(client.read_to_end()), "/a/b");
}

TEST_F(HttpServerTest, ShutdownWaitsForAnAnswerUntilItsDeadline) {
  serve([this](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
    const std::lock_guard lock(mutex_);
    kept_ = reply;
    changed_.notify_all();
  });
  const Client client(server_->port());
  client.send("GET / HTTP/1.1\r\n\r\n");
  {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, 60s, [this] { return kept_ != nullptr; }));
  }
  server_->shutdown(Deadline::after(20ms));
  EXPECT_EQ(client.read_to_end(), "");
  kept_.reset();
}

TEST_F(HttpServerTest, AStreamThatNobodyReadsIsGivenUp) {
  HttpServerOptions options;
  options.max_unsent_bytes = 1 << 20;
  serve(
      [this](const HttpRequest&, const std::shared_ptr<HttpReply>& reply) {
        reply->on_gone([this] {
          const std::lock_guard lock(mutex_);
          is_gone_ = true;
          changed_.notify_all();
        });
        reply->begin_stream();
        for (int i = 0; i < 64; ++i) reply->write(std::string(1 << 20, 'x'));
        const std::lock_guard lock(mutex_);
        kept_ = reply;
        changed_.notify_all();
      },
      options);
  const Client client(server_->port());
  client.send("GET / HTTP/1.1\r\n\r\n");
  std::unique_lock lock(mutex_);
  EXPECT_TRUE(changed_.wait_for(lock, 60s, [this] { return is_gone_; }));
  // The handler may still be writing; its reply must go before the server does.
  EXPECT_TRUE(changed_.wait_for(lock, 60s, [this] { return kept_ != nullptr; }));
  kept_.reset();
}

TEST_F(HttpServerTest, AHostThatIsNoAddressAndAPortInUseAreRefused) {
  const auto handle = [](const HttpRequest&, const std::shared_ptr<HttpReply>&) {};
  HttpServerOptions options;
  options.host = "not an address";
  EXPECT_THROW(serve(handle, options), Error);
  serve(handle);
  HttpServerOptions same;
  same.port = server_->port();
  EXPECT_THROW(HttpServer(same, {}), Error);
}

}  // namespace
}  // namespace nibble
