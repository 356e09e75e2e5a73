#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "rollout/reward/scorer.h"

namespace nibble {

/// How a server of scores is asked.
class RemoteTransport {
 public:
  virtual ~RemoteTransport() = default;
  /// One attempt for some samples: an outcome for each, in order. Throws Error{kInvalidArgument} if
  /// the server refuses, which asking again will not change, Error{kUnavailable} if it cannot be
  /// reached or says something else, Error{kDeadlineExceeded} after `timeout`. Any thread.
  virtual std::vector<RewardOutcome> ask(std::span<const ScoredText> samples,
                                         std::chrono::milliseconds timeout) const = 0;
};

/// POST {"samples": [{"response": "..", "label": any}, ..]} to "http://HOST:PORT/PATH", answered by
/// {"rewards": [..]}: a number, or {"error": "why there is none"}. 4xx but 429 are refusals; an
/// answer has at most 16 MiB. Throws Error{kInvalidArgument} for another URL.
std::unique_ptr<RemoteTransport> make_http_transport(const std::string& url);

/// nibble.reward.Reward.Score (proto/reward.proto) of "grpc://HOST:PORT". The codes for a request
/// that makes no sense to the server are refusals; an answer has at most 64 MiB. Throws
/// Error{kInvalidArgument} for another URL.
std::unique_ptr<RemoteTransport> make_grpc_transport(const std::string& url);

/// What a server gave one sample: `reward` if it is finite.
RewardOutcome remote_reward(double reward);
/// The error of a sample that the server says it cannot score.
RewardOutcome remote_refusal(const std::string& why);

}  // namespace nibble
