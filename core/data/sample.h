#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// How the experts that MoE layers chose are stored (R3): for each token [layers, top_k],
/// row-major.
struct RouteShape {
  int64_t layers = 0;  ///< MoE layers; 0: no routes
  int64_t top_k = 0;
  int64_t bytes_per_expert = 1;  ///< 1: uint8, 2: uint16 (little-endian)

  int64_t bytes_per_token() const { return layers * top_k * bytes_per_expert; }
  friend bool operator==(const RouteShape&, const RouteShape&) = default;
};

/// One sampled response, with what the trainer needs to learn from it. Tokens and figures are the
/// engine's own: nothing is ever tokenized again.
struct Sample {
  uint32_t sample_index = 0;      ///< within its prompt's group
  std::vector<int32_t> response;  ///< stop token included
  std::vector<float> log_probs;   ///< of the response, at the sampling temperature
  std::vector<int64_t> versions;  ///< weight version that made each token
  std::string finish_reason;      ///< "stop" or "length"
  double reward = 0.0;
  std::vector<uint8_t> routes;  ///< of the response's tokens but the last; empty: not captured
};

/// A prompt and all samples drawn from it: the unit of advantage, and of work.
struct SampleGroup {
  uint64_t prompt_id = 0;
  std::vector<int32_t> prompt;
  RouteShape route_shape;              ///< of all routes
  std::vector<uint8_t> prompt_routes;  ///< of the prompt's tokens; empty: not captured
  std::vector<Sample> samples;
};

}  // namespace nibble
