#include "rollout/engine/request.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/fail.h"
#include "core/base/philox.h"

namespace nibble {
namespace {

constexpr size_t kMaxStopIds = 256;
constexpr int32_t kMaxTopLogProbs = 64;
// Colder than this, logits / T leaves the range in which float32 tells tokens apart.
constexpr float kMinTemperature = 1e-3f;
constexpr float kMaxTemperature = 1e3f;

void check_sampling(const GenerateRequest& request) {
  const kernels::SamplingParams& p = request.sampling;
  const bool is_greedy = p.temperature == 0.0f;
  if (!is_greedy && !(p.temperature >= kMinTemperature && p.temperature <= kMaxTemperature)) {
    fail(ErrorCode::kInvalidArgument,
         "request {}: temperature {} must be 0 (greedy) or lie in [{}, {}]", request.id,
         p.temperature, kMinTemperature, kMaxTemperature);
  }
  if (p.top_k < 0) {
    fail(ErrorCode::kInvalidArgument, "request {}: top_k {} must be >= 0 (0: all)", request.id,
         p.top_k);
  }
  if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) {
    fail(ErrorCode::kInvalidArgument, "request {}: top_p {} must lie in (0, 1]", request.id,
         p.top_p);
  }
}

void check_ids(const GenerateRequest& request, const std::vector<int32_t>& ids, const char* what,
               int64_t vocab) {
  for (const int32_t id : ids) {
    if (id >= 0 && id < vocab) continue;
    fail(ErrorCode::kInvalidArgument, "request {}: {} has token id {} outside the vocabulary of {}",
         request.id, what, id, vocab);
  }
}

// What an earlier request drew must be a whole beginning of this one's sample.
void check_drawn(const GenerateRequest& request, const RequestLimits& limits) {
  const Completion& drawn = request.drawn;
  const size_t count = drawn.tokens.size();
  if (count == 0) return;
  const bool has_routes = request.want_routes && limits.route_bytes > 0;
  const size_t route_bytes =
      has_routes ? (request.prompt.size() + count - 1) * static_cast<size_t>(limits.route_bytes)
                 : 0;
  const struct {
    const char* what;
    size_t size, wanted;
  } parts[] = {
      {"log_probs", drawn.log_probs.size(), count},
      {"versions", drawn.versions.size(), count},
      {"plain_log_probs", drawn.plain_log_probs.size(), request.want_plain_log_probs ? count : 0},
      {"top_log_probs", drawn.top_log_probs.size(), request.num_top_log_probs > 0 ? count : 0},
      {"bytes of routes", drawn.routes.bytes.size(), route_bytes}};
  for (const auto& part : parts) {
    if (part.size == part.wanted) continue;
    fail(ErrorCode::kInvalidArgument,
         "request {}: {} tokens were drawn before, but with {} {}; want {}", request.id, count,
         part.size, part.what, part.wanted);
  }
  if (count >= static_cast<size_t>(request.max_new_tokens)) {
    fail(ErrorCode::kInvalidArgument,
         "request {}: {} tokens were drawn before, and max_new_tokens is {}; nothing is left to do",
         request.id, count, request.max_new_tokens);
  }
  check_ids(request, drawn.tokens, "what was drawn before", limits.vocab);
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAborted:
      break;
  }
  return "aborted";
}

int32_t Routes::expert(int64_t position, int64_t layer, int64_t choice) const {
  const int64_t index = (position * layers + layer) * top_k + choice;
  NIBBLE_CHECK(position >= 0 && position < positions && layer >= 0 && layer < layers &&
                   choice >= 0 && choice < top_k,
               "route [{}, {}, {}] of [{}, {}, {}]", position, layer, choice, positions, layers,
               top_k);
  if (bytes_per_expert == 1) return bytes[static_cast<size_t>(index)];
  uint16_t wide;
  std::memcpy(&wide, bytes.data() + index * 2, sizeof wide);
  return wide;
}

double uniform_at(const GenerateRequest& request, int64_t position) {
  return philox_uniform(
      {request.seed, request.prompt_id, request.sample_index, static_cast<uint32_t>(position)});
}

void check_request(const GenerateRequest& request, const RequestLimits& limits) {
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "request {}: the prompt needs at least one token",
         request.id);
  }
  if (request.max_new_tokens < 1) {
    fail(ErrorCode::kInvalidArgument, "request {}: max_new_tokens {} must be >= 1", request.id,
         request.max_new_tokens);
  }
  // The last new token is never computed, so it needs neither a position nor a slot. Subtracted,
  // not added: max_new_tokens may be anything.
  const int64_t most = std::min(limits.max_positions, limits.kv_slots);
  if (request.max_new_tokens - 1 > most - prompt_tokens) {
    fail(ErrorCode::kInvalidArgument,
         "request {}: {} prompt tokens and max_new_tokens {} do not fit; the engine has {} "
         "positions a sequence and {} cache slots",
         request.id, prompt_tokens, request.max_new_tokens, limits.max_positions, limits.kv_slots);
  }
  if (request.stop_ids.size() > kMaxStopIds) {
    fail(ErrorCode::kInvalidArgument, "request {}: {} stop ids; at most {} are allowed", request.id,
         request.stop_ids.size(), kMaxStopIds);
  }
  if (request.num_top_log_probs < 0 || request.num_top_log_probs > kMaxTopLogProbs) {
    fail(ErrorCode::kInvalidArgument, "request {}: num_top_log_probs {} must be from 0 to {}",
         request.id, request.num_top_log_probs, kMaxTopLogProbs);
  }
  check_ids(request, request.prompt, "prompt", limits.vocab);
  check_ids(request, request.stop_ids, "stop_ids", limits.vocab);
  check_drawn(request, limits);
  check_sampling(request);
}

}  // namespace nibble
