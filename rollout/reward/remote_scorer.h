#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "rollout/reward/remote_transport.h"
#include "rollout/reward/reward_spec.h"
#include "rollout/reward/scorer.h"

namespace nibble {

struct RemoteScorerOptions {
  std::string url;                       ///< http://HOST:PORT/PATH or grpc://HOST:PORT
  std::chrono::milliseconds timeout{0};  ///< of one attempt
  int64_t attempts = 0;                  ///< from 1 to 10
};

RemoteScorerOptions remote_options(const RewardSpec& spec);

/// Of one request: all its attempts and the pauses between them.
std::chrono::milliseconds longest_wait(const RemoteScorerOptions& options);

/// Asks a server for scores (RemoteTransport), up to 32 samples at a time. Outcomes that are
/// errors:
///   kInvalidArgument   the server's error of that sample, or it refused: not tried again
///   kUnavailable       it cannot be reached, hangs up, is busy or answers something else
///   kDeadlineExceeded  no answer within `timeout`
/// The last two after all attempts, between which it waits 50 ms, 100 ms, 200 ms and so on.
class RemoteScorer final : public Scorer {
 public:
  /// Throws Error{kInvalidArgument} for options out of range and a URL that is none. Connects to
  /// nothing yet.
  explicit RemoteScorer(RemoteScorerOptions options);
  ~RemoteScorer() override;

  double score(std::string_view response, const Json& label) const override;
  size_t max_batch() const override;
  std::vector<RewardOutcome> score_all(std::span<const ScoredText> samples) const override;

 private:
  std::vector<RewardOutcome> ask(std::span<const ScoredText> samples) const;

  const RemoteScorerOptions options_;
  std::unique_ptr<const RemoteTransport> transport_;
};

}  // namespace nibble
