#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/base/clock.h"
#include "core/base/parallel_calls.h"
#include "core/kernels/parallel.h"
#include "rollout/server/api_server.h"
#include "rollout/server/http_server.h"
#include "tests/rollout/engine/engine_fixture.h"
#include "tests/rollout/server/raw_client.h"
#include "tests/rollout/server/request_mutator.h"
#include "tests/rollout/server/served_fixture.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int kCases = 6'000;
constexpr int kClients = 8;
constexpr std::string_view kGood =
    R"({"prompt": [5, 6, 7], "max_tokens": 9, "temperature": 0, "ignore_eos": true})";

std::string post(std::string_view path, std::string_view body) {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}", path,
      body.size(), body);
}

/// The whole server over an engine with a small random model, with short patience.
class HttpFuzz : public ::testing::Test {
 protected:
  HttpFuzz() {
    engine_.start();
    const Deadline deadline = Deadline::after(60s);
    while (engine_.snapshot().state != EngineState::kReady && !deadline.expired()) {
      std::this_thread::yield();
    }
  }
  // Replies are dropped before the server that they go to.
  ~HttpFuzz() override { engine_.stop(Deadline::after(0ms)); }

  static HttpServerOptions options() {
    HttpServerOptions options;
    options.max_body_bytes = 64 << 10;
    options.max_connections = 64;
    options.head_timeout = 300ms;
    options.body_timeout = 300ms;
    options.idle_timeout = 2'000ms;
    return options;
  }
  ServedEngine make_engine() {
    EngineConfig config;
    config.max_running = 8;
    config.max_step_tokens = 32;
    config.kv_slots = 256;
    config.max_positions = served_.model.max_tokens;
    config.max_requests = 64;
    ServedEngine made;
    made.engine = std::make_unique<Engine>(model_.spec, config, serial_);
    made.engine->set_weights(borrowed(model_.weights), 1);
    made.make_scorer = [this] {
      return std::make_unique<GivenScorer>(
          model_.spec,
          [this](const ModelSpec& spec, const EngineConfig& engine) {
            return make_cpu_step_runner(spec, engine, serial_);
          },
          model_.weights, served_.model.max_tokens);
    };
    return made;
  }
  std::string exchange(const std::string& request) const {
    const RawClient client(http_.port());
    EXPECT_TRUE(client.send(request));
    return client.read_to_end();
  }
  std::string good_answer() const {
    const std::string answer = exchange(post("/v1/completions", kGood));
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 ")) << answer;
    const size_t text = answer.find("\"text\":");
    EXPECT_NE(text, std::string::npos) << answer;
    return answer.substr(text);
  }
  // What /metrics says; -1 if it does not.
  double metric(const std::string& name) const {
    const std::string text = exchange("GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    const size_t at = text.find("\n" + name + " ");
    return at == std::string::npos ? -1.0 : std::stod(text.substr(at + name.size() + 2));
  }
  void expect_metric(const std::string& name, double want) const {
    const Deadline deadline = Deadline::after(60s);
    double is = metric(name);
    while (is != want && !deadline.expired()) is = metric(name);
    EXPECT_EQ(is, want) << name;
  }
  // Nothing that was sent has left anything behind. Samples of clients that went away take a while
  // to end, and until then the queue may be full.
  void expect_as_new(const std::string& answer_before) const {
    expect_metric("nibble_engine_ready", 1);
    expect_metric("nibble_samples_open", 0);
    expect_metric("nibble_samples_running", 0);
    expect_metric("nibble_samples_waiting", 0);
    expect_metric("nibble_kv_slots_free", 256);
    expect_metric("nibble_connections", 1);  // its own
    EXPECT_EQ(good_answer(), answer_before);
  }

  ServedFixture served_;
  RandomModel model_{512, 3};
  kernels::Serial serial_;
  EngineThread engine_{[this] { return make_engine(); }, 64};
  ApiServer api_{{"", 60s}, served_.model, engine_};
  HttpServer http_{options(), api_.handlers()};
};

// What one connection may see. A 5xx would be a fault of the server's. Returns the status, 0 if the
// server closed without a word.
int status_of(int number, const std::string& sent, const std::string& answer) {
  if (answer.empty()) return 0;
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 ") && answer.size() > 12)
      << "case " << number << ": " << answer.substr(0, 200);
  const int status = std::atoi(answer.substr(9, 3).c_str());
  EXPECT_TRUE(status == 100 || status == 200 || (status >= 400 && status < 500))
      << "case " << number << " got " << answer.substr(0, 300) << "\nfor " << sent.substr(0, 300);
  EXPECT_EQ(answer.find("HTTP/1.1 500"), std::string::npos) << "case " << number;
  return status;
}

// Sends one case and returns how it was answered. When the server is quiet, most cases say that no
// more will come; some leave it to find out.
int send_case(int port, int number) {
  RequestMutator mutator(static_cast<uint64_t>(number));
  const std::string request = mutator.next();
  const RawClient client(port);
  if (!client.send(request)) return 0;
  std::string answer;
  while (const auto piece = client.read_some(number % 100 == 0 ? 1'000ms : 10ms)) {
    if (piece->empty()) return status_of(number, request, answer);
    answer += *piece;
  }
  client.end_sending();
  return status_of(number, request, answer + client.read_to_end());
}

TEST_F(HttpFuzz, WhatNoClientShouldSendIsRefusedAndLeavesNothingBehind) {
  const std::string before = good_answer();
  std::mutex mutex;
  std::map<int, int> seen;  // status -> cases
  std::vector<std::function<void()>> clients;
  clients.reserve(kClients);
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      for (int number = c; number < kCases; number += kClients) {
        const int status = send_case(http_.port(), number);
        const std::lock_guard lock(mutex);
        ++seen[status];
      }
    });
  }
  run_parallel(clients);
  // The cases reach what they are meant to reach.
  for (const int status : {0, 200, 400, 404, 405, 408, 413, 431}) {
    EXPECT_GT(seen[status], 0) << "no case ended with " << status;
  }
  EXPECT_GT(seen[200], kCases / 20);
  EXPECT_GT(seen[400], kCases / 4);
  expect_as_new(before);
}

TEST_F(HttpFuzz, ClientsThatGoAwayInTheMiddleLeaveNothingBehind) {
  const std::string before = good_answer();
  for (int number = 0; number < 400; ++number) {
    const RawClient client(http_.port());
    (void)client.send(
        post("/v1/completions", R"({"prompt": [9, 8], "max_tokens": 60, "n": 8, "stream": true})"));
    // At once, with the head, or after some of the answer.
    if (number % 3 > 0) (void)client.read_some(number % 3 == 1 ? 1ms : 20ms);
  }
  expect_as_new(before);
}

TEST_F(HttpFuzz, ClientsThatSendTooSlowlyAreEndedWhileOthersAreServed) {
  const std::string before = good_answer();
  const std::string request = post("/v1/completions", kGood);
  const size_t body = request.size() - kGood.size();
  std::vector<std::unique_ptr<RawClient>> slow;
  std::vector<std::string> answers(32);
  for (size_t i = 0; i < answers.size(); ++i) {
    slow.push_back(std::make_unique<RawClient>(http_.port()));
    // Half of them dawdle over the head, half over the body.
    if (i % 2 == 1) (void)slow[i]->send(request.substr(0, body));
  }
  const Deadline deadline = Deadline::after(60s);
  size_t open = slow.size();
  for (size_t sent = 0; open > 0 && !deadline.expired(); ++sent) {
    open = 0;
    for (size_t i = 0; i < slow.size(); ++i) {
      if (slow[i] == nullptr) continue;
      ++open;
      const size_t at = (i % 2 == 1 ? body : 0) + sent;
      const bool is_open = sent < 20 && slow[i]->send(request.substr(at, 1));
      const auto piece = slow[i]->read_some(1ms);
      if (piece) answers[i] += *piece;
      if ((piece && piece->empty()) || (sent < 20 && !is_open)) slow[i].reset();
    }
    EXPECT_EQ(good_answer(), before);
  }
  EXPECT_EQ(open, 0u) << "some are still connected";
  for (const std::string& answer : answers) EXPECT_TRUE(answer.starts_with("HTTP/1.1 408 "));
  expect_as_new(before);
}

}  // namespace
}  // namespace nibble
