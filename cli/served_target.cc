#include "cli/served_target.h"

#include <charconv>
#include <thread>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kAskTimeout{10'000};
constexpr std::chrono::milliseconds kReadyTimeout{600'000};
constexpr std::chrono::milliseconds kIdleTimeout{10'000};
constexpr std::chrono::milliseconds kPause{20};

HttpTarget address_of(const ServeBenchFlags& flags, const ServeStack* own) {
  HttpTarget target;
  if (own != nullptr) {
    target.port = std::to_string(own->port());
  } else {
    target = parse_http_url("--url", flags.url);
  }
  target.api_key = api_key_of(flags.server.api_key_env);
  return target;
}

}  // namespace

ServedTarget::ServedTarget(const ServeBenchFlags& flags,
                           const std::shared_ptr<const LoadedModel>& model) {
  if (flags.url.empty()) {
    own_ = std::make_unique<ServeStack>(flags.server, [engine = flags.server.engine, model] {
      return make_served_engine(engine, model);
    });
    own_->start();
  }
  address_ = address_of(flags, own_.get());
  if (own_) wait_until_ready();
  ask_model();
}

void ServedTarget::wait_until_ready() const {
  const Deadline deadline = Deadline::after(kReadyTimeout);
  while (true) {
    const EngineSnapshot snapshot = own_->engine().snapshot();
    if (snapshot.state == EngineState::kReady) return;
    if (snapshot.state != EngineState::kLoading) {
      fail(ErrorCode::kFailedPrecondition, "the server's engine failed: {}", snapshot.failure);
    }
    if (deadline.expired()) {
      fail(ErrorCode::kDeadlineExceeded, "the server's engine was not ready within {} ms",
           kReadyTimeout.count());
    }
    std::this_thread::sleep_for(kPause);
  }
}

void ServedTarget::ask_model() {
  const HttpAnswer answer = fetch(address_, "/v1/models", "", kAskTimeout);
  if (answer.status != 200) {
    fail(ErrorCode::kUnavailable, "/v1/models of {}: status {}: {}", address_.name(), answer.status,
         answer.body.substr(0, 300));
  }
  const Json models = parse_json(answer.body, "/v1/models");
  try {
    const Json& model = models.at("data").at(0);
    model_name_ = model.at("id").get<std::string>();
    max_positions_ = model.value("max_model_len", int64_t{0});
  } catch (const Json::exception&) {
    fail(ErrorCode::kDataLoss, "/v1/models of {} names no model", address_.name());
  }
}

std::optional<int64_t> ServedTarget::metric(const std::string& name) const {
  const HttpAnswer answer = fetch(address_, "/metrics", "", kAskTimeout);
  if (answer.status != 200) return std::nullopt;
  const std::string start = "\n" + name + " ";
  const size_t at = ("\n" + answer.body).find(start);
  if (at == std::string::npos) return std::nullopt;
  int64_t value = 0;
  const char* begin = answer.body.data() + at + start.size() - 1;
  const auto [end, error] = std::from_chars(begin, answer.body.data() + answer.body.size(), value);
  if (error != std::errc() || end == begin) return std::nullopt;
  return value;
}

void ServedTarget::check_idle() const {
  if (!own_) return;
  const Deadline deadline = Deadline::after(kIdleTimeout);
  while (metric("nibble_samples_open") != 0) {
    if (deadline.expired()) {
      fail(ErrorCode::kInternal, "the server still holds {} samples after all answers",
           own_->engine().snapshot().open_samples);
    }
    std::this_thread::sleep_for(kPause);
  }
}

void ServedTarget::stop() {
  if (own_) own_->stop();
}

}  // namespace nibble
