#include "rollout/reward/remote_scorer.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxSamples = 32;
constexpr auto kFirstPause = std::chrono::milliseconds(50);

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
  if (reward.is_number() && std::isfinite(reward.get<double>())) return reward.get<double>();
  if (reward.is_object() && reward.contains("error") && reward["error"].is_string()) {
    return Error(ErrorCode::kInvalidArgument,
                 "the remote reward: " + reward["error"].get<std::string>().substr(0, 500));
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

}  // namespace

RemoteScorerOptions remote_options(const RewardSpec& spec) {
  return {spec.url, std::chrono::milliseconds(spec.remote_timeout_ms), spec.remote_attempts};
}

std::chrono::milliseconds longest_wait(const RemoteScorerOptions& options) {
  auto longest = options.timeout;
  auto pause = kFirstPause;
  for (int64_t attempt = 1; attempt < options.attempts; ++attempt) {
    longest += pause + options.timeout;
    pause *= 2;
  }
  return longest;
}

RemoteScorer::RemoteScorer(RemoteScorerOptions options) : options_(std::move(options)) {
  constexpr int64_t kMaxAttempts = 10;
  constexpr std::chrono::milliseconds kMaxTimeout = std::chrono::hours(1);
  if (options_.url.empty()) fail(ErrorCode::kInvalidArgument, "the remote reward wants a URL");
  if (options_.attempts < 1 || options_.attempts > kMaxAttempts || options_.timeout.count() < 1 ||
      options_.timeout > kMaxTimeout) {
    fail(ErrorCode::kInvalidArgument,
         "the remote reward has {} attempts of {} ms; want from 1 to {} of 1 to {} ms",
         options_.attempts, options_.timeout.count(), kMaxAttempts, kMaxTimeout.count());
  }
  std::tie(target_, path_) = split_url(options_.url);
}

double RemoteScorer::score(std::string_view response, const Json& label) const {
  const ScoredText sample{response, &label};
  const RewardOutcome outcome = score_all({&sample, 1})[0];
  if (const auto* error = std::get_if<Error>(&outcome)) throw *error;
  return std::get<double>(outcome);
}

size_t RemoteScorer::max_batch() const { return kMaxSamples; }

std::vector<RewardOutcome> RemoteScorer::score_all(std::span<const ScoredText> samples) const {
  std::vector<RewardOutcome> outcomes;
  for (size_t begin = 0; begin < samples.size(); begin += kMaxSamples) {
    const size_t count = std::min(kMaxSamples, samples.size() - begin);
    for (RewardOutcome& outcome : ask(samples.subspan(begin, count))) {
      outcomes.push_back(std::move(outcome));
    }
  }
  return outcomes;
}

std::vector<RewardOutcome> RemoteScorer::ask(std::span<const ScoredText> samples) const {
  const std::string body = request_body(samples);
  auto pause = kFirstPause;
  for (int64_t attempt = 1;; ++attempt) {
    try {
      return ask_once(body, samples.size());
    } catch (const Error& error) {
      // Refused, or all attempts are used up: the outcome of each sample.
      if (error.code() == ErrorCode::kInvalidArgument || attempt == options_.attempts) {
        return std::vector<RewardOutcome>(samples.size(), error);
      }
    }
    std::this_thread::sleep_for(pause);
    pause *= 2;
  }
}

std::vector<RewardOutcome> RemoteScorer::ask_once(const std::string& body,
                                                  size_t num_samples) const {
  const HttpAnswer answer = fetch(target_, path_, body, options_.timeout);
  if (answer.status != 200) {
    const bool is_refused = answer.status >= 400 && answer.status < 500 && answer.status != 429;
    fail(is_refused ? ErrorCode::kInvalidArgument : ErrorCode::kUnavailable,
         "{} answered with status {}: {}", options_.url, answer.status, answer.body.substr(0, 200));
  }
  const Json rewards = rewards_in(answer.body);
  if (rewards.size() != num_samples) {
    fail(ErrorCode::kUnavailable, "{} gave no list of {} rewards", options_.url, num_samples);
  }
  std::vector<RewardOutcome> outcomes;
  for (const Json& reward : rewards) outcomes.push_back(outcome_of(reward));
  return outcomes;
}

}  // namespace nibble
