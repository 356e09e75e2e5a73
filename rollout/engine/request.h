#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "core/kernels/log_softmax.h"
#include "rollout/engine/draw.h"
#include "rollout/engine/stop_condition.h"

namespace nibble {

enum class FinishReason { kStop, kLength, kAborted };
std::string_view finish_reason_name(FinishReason reason);

/// Experts that MoE layers chose: [positions, layers, top_k], row-major.
struct Routes {
  int64_t positions = 0;
  int64_t layers = 0;  ///< MoE layers
  int64_t top_k = 0;
  int64_t bytes_per_expert = 1;  ///< 1: uint8, 2: uint16 (native order)
  std::vector<uint8_t> bytes;
  /// Chosen expert number `choice` (in descending probability).
  int32_t expert(int64_t position, int64_t layer, int64_t choice) const;
};

/// A finished sample. Vectors over tokens have equal lengths.
struct Completion {
  uint64_t id = 0;
  std::vector<int32_t> tokens;  ///< the stop token included
  /// log-softmax(logits / T) over the full vocabulary, before top-k and top-p; T = 1 when greedy.
  std::vector<float> log_probs;
  std::vector<int64_t> versions;       ///< of the weights that each token was drawn with
  std::vector<float> plain_log_probs;  ///< at temperature 1, if wanted
  std::vector<std::vector<TokenLogProb>> top_log_probs;  ///< at temperature 1, if wanted
  int64_t cached_prompt_tokens = 0;  ///< of the prompt, that were in the cache already
  FinishReason reason = FinishReason::kAborted;
  Routes
      routes;  ///< of every token that was computed: the prompt, and all of `tokens` but the last
};

/// One sample to generate. Its tokens and log-probabilities depend on the weights, prompt,
/// sampling, seed, prompt_id and sample_index, and on nothing else.
struct GenerateRequest {
  uint64_t id = 0;            ///< the caller's name for it, unique inside one engine
  uint64_t prompt_id = 0;     ///< names the prompt in random draws
  uint32_t sample_index = 0;  ///< which sample of the prompt, in random draws
  std::vector<int32_t> prompt;
  int64_t max_new_tokens = 0;
  kernels::SamplingParams sampling;
  uint64_t seed = 0;
  /// What an earlier request with this prompt, seed, prompt_id and sample_index drew before it was
  /// aborted: the sample goes on behind it, with its tokens, log-probabilities, versions and routes
  /// as they are. Empty: it begins.
  Completion drawn;
  std::vector<int32_t> stop_ids;        ///< end the sample; the id itself is kept
  std::unique_ptr<StopCondition> stop;  ///< null: none
  bool want_routes = false;
  bool want_plain_log_probs = false;  ///< of its tokens also at temperature 1
  int32_t num_top_log_probs = 0;      ///< likeliest tokens reported beside each; up to 64
  /// Higher ones start first, and are stopped last for want of memory; equal ones in order of
  /// arrival. One more is worth an arrival 1024 steps earlier: nobody waits for ever.
  int32_t priority = 0;
  /// Told of every token as soon as it is drawn, and called by the engine's thread: the sample so
  /// far, its reason not yet set. Must not call the engine. Null: nobody.
  std::function<void(const Completion&)> on_token;
};

/// The random number in [0, 1) that draws the token at a position of the sample (prompt tokens
/// count): it depends on nothing else.
double uniform_at(const GenerateRequest& request, int64_t position);

/// What requests are checked against.
struct RequestLimits {
  int64_t vocab = 0;
  int64_t max_positions = 0;
  int64_t kv_slots = 0;
  int64_t route_bytes = 0;  ///< of Routes for one token
};

/// Throws Error{kInvalidArgument} naming the request and the field if it can never be served.
void check_request(const GenerateRequest& request, const RequestLimits& limits);

}  // namespace nibble
