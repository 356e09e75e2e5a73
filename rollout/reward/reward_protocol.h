#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/json.h"
#include "rollout/reward/scorer.h"

namespace nibble {

// What a reward worker speaks: one JSON object a line, UTF-8, requests answered in order.
//   worker, once:  {"ready": "<reward type>"}
//   request:       {"id": 7, "response": "..", "label": <any JSON>}
//   reply:         {"id": 7, "score": 0.5}  or  {"id": 7, "code": "invalid_argument", "error":
//   ".."}

constexpr size_t kMaxRequestBytes = 64 << 20;  ///< a 4 MiB response, escaped, and its label
constexpr size_t kMaxReplyBytes = 64 << 10;

struct RewardRequest {
  int64_t id = 0;
  std::string response;
  Json label;
};

struct RewardReply {
  int64_t id = 0;
  RewardOutcome outcome = 0.0;
};

/// The line of a message, line feed included. Bytes that are not UTF-8 become U+FFFD.
std::string encode_ready(const std::string& type);
std::string encode_request(int64_t id, std::string_view response, const Json& label);
std::string encode_reply(const RewardReply& reply);

/// Read a line as that message. They throw Error{kInvalidArgument} for anything else, a score that
/// is not finite and an unknown code included.
void expect_ready(std::string_view line);
RewardRequest decode_request(std::string_view line);
RewardReply decode_reply(std::string_view line);

/// The body of the program `nibble-reward ARGUMENT` (reward_spec.h): answers requests from `in_fd`
/// on `out_fd` until the end of input, then returns 0. Requests that are there already are scored
/// together where the scorer takes several. Throws Error{kInvalidArgument} for an unknown type and
/// for a line that is no request; Error{kUnavailable} when nobody reads.
int run_reward_worker(const std::string& argument, int in_fd, int out_fd);

}  // namespace nibble
