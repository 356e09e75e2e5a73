#pragma once

#include <cstdint>
#include <string>

#include "core/config/fields.h"
#include "core/config/limits.h"
#include "rollout/reward/reward_spec.h"

namespace nibble {

/// Key `reward`: how responses are scored.
struct RewardConfig {
  std::string type = "last_number";
  int64_t timeout_ms = 5'000;
  int64_t memory_mb = 512;
  std::string url;
  int64_t remote_timeout_ms = RewardSpec{}.remote_timeout_ms;
  int64_t remote_attempts = RewardSpec{}.remote_attempts;
};

template <typename Visitor>
void visit_fields(Visitor& v, RewardConfig& c) {
  v.field("type", c.type, "",
          "math, math_miles, deepscaler, dapo, last_number, gpqa, f1, exact, ifbench, "
          "reasoning_gym or remote; boxed_TYPE scores the last \\boxed{} alone; "
          "TYPE=WEIGHT,TYPE=WEIGHT adds several up");
  v.field("timeout_ms", c.timeout_ms, "ms", "for one response", AtLeast{1});
  v.field("memory_mb", c.memory_mb, "MiB", "address space of the reward process", AtLeast{64});
  v.field("url", c.url, "",
          "http://HOST:PORT/PATH or grpc://HOST:PORT that scores for type remote");
  v.field("remote_timeout_ms", c.remote_timeout_ms, "ms", "for one request to it", AtLeast{1});
  v.field("remote_attempts", c.remote_attempts, "",
          "requests before a response counts as not scored", Range{1, 10});
}

/// What a reward worker is told. Throws Error{kInvalidArgument} for a type that cannot be read, one
/// that is unknown, a URL that does not fit and a timeout_ms that ends remote rewards before their
/// last attempt.
RewardSpec reward_spec(const RewardConfig& config);

}  // namespace nibble
