#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "core/http/http_client.h"
#include "rollout/reward/reward_spec.h"
#include "rollout/reward/scorer.h"

namespace nibble {

struct RemoteScorerOptions {
  std::string url;                       ///< http://HOST:PORT/PATH
  std::chrono::milliseconds timeout{0};  ///< of one attempt
  int64_t attempts = 0;                  ///< from 1 to 10
};

RemoteScorerOptions remote_options(const RewardSpec& spec);

/// Of one request: all its attempts and the pauses between them.
std::chrono::milliseconds longest_wait(const RemoteScorerOptions& options);

/// Asks a server for scores: POST {"samples": [{"response": "..", "label": any}, ..]}, answered by
/// {"rewards": [..]}, one for each sample in order: a number, or {"error": "why there is none"}.
/// Up to 32 samples travel together; an answer has at most 16 MiB. Outcomes that are errors:
///   kInvalidArgument   the server's {"error"} of that sample, or it answered 4xx: not tried again
///   kUnavailable       it cannot be reached, hangs up, answers 429, 5xx or something else
///   kDeadlineExceeded  no answer within `timeout`
/// The last two after all attempts, between which it waits 50 ms, 100 ms, 200 ms and so on.
class RemoteScorer final : public Scorer {
 public:
  /// Throws Error{kInvalidArgument} for options out of range and a URL that is none. Connects to
  /// nothing yet.
  explicit RemoteScorer(RemoteScorerOptions options);

  double score(std::string_view response, const Json& label) const override;
  size_t max_batch() const override;
  std::vector<RewardOutcome> score_all(std::span<const ScoredText> samples) const override;

 private:
  std::vector<RewardOutcome> ask(std::span<const ScoredText> samples) const;
  std::vector<RewardOutcome> ask_once(const std::string& body, size_t num_samples) const;

  const RemoteScorerOptions options_;
  std::string path_;
  HttpTarget target_;
};

}  // namespace nibble
