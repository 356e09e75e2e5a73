#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>

namespace nibble {

/// What a server says to one request. An empty text hangs up; `holds` says nothing until the client
/// has gone.
struct StubAnswer {
  std::string text;
  bool holds = false;
};

/// A whole HTTP answer with a body of JSON.
StubAnswer answer_with(int status, const std::string& body);

/// An HTTP server on a free port of the loopback, for tests: one request per connection, one
/// connection at a time. `answer` gets the body and the number of the request from 0, on the
/// server's thread.
class HttpStub {
 public:
  using Answer = std::function<StubAnswer(const std::string& body, int request)>;
  explicit HttpStub(Answer answer);
  ~HttpStub();
  HttpStub(const HttpStub&) = delete;
  HttpStub& operator=(const HttpStub&) = delete;

  std::string url() const;
  int num_requests() const { return num_requests_; }

 private:
  void serve();
  void serve_one(int connection);

  const Answer answer_;
  int listener_ = -1;
  std::atomic<int> num_requests_ = 0;
  std::thread thread_;
};

}  // namespace nibble
