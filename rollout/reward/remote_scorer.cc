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

std::unique_ptr<RemoteTransport> make_transport(const std::string& url) {
  return url.starts_with("grpc://") ? make_grpc_transport(url) : make_http_transport(url);
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

RemoteScorer::~RemoteScorer() = default;

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
  transport_ = make_transport(options_.url);
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
  auto pause = kFirstPause;
  for (int64_t attempt = 1;; ++attempt) {
    try {
      return transport_->ask(samples, options_.timeout);
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

RewardOutcome remote_reward(double reward) {
  if (std::isfinite(reward)) return reward;
  return Error(ErrorCode::kUnavailable, "the remote reward gave a number that is not finite");
}

RewardOutcome remote_refusal(const std::string& why) {
  constexpr size_t kMaxText = 500;
  return Error(ErrorCode::kInvalidArgument, "the remote reward: " + why.substr(0, kMaxText));
}

}  // namespace nibble
