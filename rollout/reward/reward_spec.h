#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// The type whose scores come from a server.
constexpr std::string_view kRemoteReward = "remote";

/// One reward and its share: the score of a sample is the sum of weight x score.
struct RewardPart {
  std::string type;
  double weight = 1.0;
  bool operator==(const RewardPart&) const = default;
};

/// What a reward worker needs to know to score.
struct RewardSpec {
  std::vector<RewardPart> parts;      ///< one to sixteen, of different types
  std::string url;                    ///< of type remote: http://HOST:PORT/PATH
  int64_t remote_timeout_ms = 1'500;  ///< for one attempt of a request
  int64_t remote_attempts = 3;
  bool operator==(const RewardSpec&) const = default;
};

/// Reads "math" or "math=1,f1=0.1". Throws Error{kInvalidArgument} for anything else; the types are
/// looked at by make_scorer.
std::vector<RewardPart> parse_reward_parts(std::string_view text);
/// "math", or "math=1,f1=0.1" if there are several or one has a weight.
std::string reward_parts_text(const std::vector<RewardPart>& parts);

/// Whether one is of type remote.
bool has_remote(const std::vector<RewardPart>& parts);

/// The argument of `nibble-reward` for a spec, and back; a text of parts is read too.
std::string reward_argument(const RewardSpec& spec);
RewardSpec parse_reward_argument(const std::string& argument);

}  // namespace nibble
