#include <tuple>
#include <utility>

#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/http/http_client.h"
#include "rollout/reward/remote_transport.h"

namespace nibble {
namespace {

/// "http://host:80/a/b" as the server and "/a/b".
std::pair<HttpTarget, std::string> split_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  size_t slash = std::string::npos;
  if (url.starts_with(kScheme)) slash = url.find('/', kScheme.size());
  const std::string path = slash == std::string::npos ? "/" : url.substr(slash);
  if (path.find_first_of(" #\r\n\t") != std::string::npos) {
    fail(ErrorCode::kInvalidArgument, "the URL '{}' of the remote reward has a bad path", url);
  }
  return {parse_http_url("the URL of the remote reward", url.substr(0, slash)), path};
}

std::string request_body(std::span<const ScoredText> samples) {
  Json list = Json::array();
  for (const ScoredText& sample : samples) {
    list.push_back({{"response", sample.response}, {"label", *sample.label}});
  }
  return Json{{"samples", std::move(list)}}.dump(-1, ' ', false, Json::error_handler_t::replace);
}

RewardOutcome outcome_of(const Json& reward) {
  if (reward.is_number()) return remote_reward(reward.get<double>());
  if (reward.is_object() && reward.contains("error") && reward["error"].is_string()) {
    return remote_refusal(reward["error"].get<std::string>());
  }
  return Error(ErrorCode::kUnavailable, "the remote reward gave neither a number nor an error");
}

/// The list in an answer; empty if there is none, whatever else the server said.
Json rewards_in(const std::string& body) {
  try {
    Json answer = parse_json(body, "remote reward");
    if (answer.is_object() && answer.contains("rewards") && answer["rewards"].is_array()) {
      return std::move(answer["rewards"]);
    }
  } catch (const Error&) {
    // No JSON: the server's failure, not that of the samples.
  }
  return Json::array();
}

class HttpTransport final : public RemoteTransport {
 public:
  explicit HttpTransport(const std::string& url) : url_(url) {
    std::tie(target_, path_) = split_url(url);
  }

  std::vector<RewardOutcome> ask(std::span<const ScoredText> samples,
                                 std::chrono::milliseconds timeout) const override {
    const HttpAnswer answer = fetch(target_, path_, request_body(samples), timeout);
    if (answer.status != 200) {
      const bool is_refused = answer.status >= 400 && answer.status < 500 && answer.status != 429;
      fail(is_refused ? ErrorCode::kInvalidArgument : ErrorCode::kUnavailable,
           "{} answered with status {}: {}", url_, answer.status, answer.body.substr(0, 200));
    }
    const Json rewards = rewards_in(answer.body);
    if (rewards.size() != samples.size()) {
      fail(ErrorCode::kUnavailable, "{} gave no list of {} rewards", url_, samples.size());
    }
    std::vector<RewardOutcome> outcomes;
    for (const Json& reward : rewards) outcomes.push_back(outcome_of(reward));
    return outcomes;
  }

 private:
  const std::string url_;
  std::string path_;
  HttpTarget target_;
};

}  // namespace

std::unique_ptr<RemoteTransport> make_http_transport(const std::string& url) {
  return std::make_unique<HttpTransport>(url);
}

}  // namespace nibble
