#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/kernels/log_softmax.h"
#include "rollout/engine/request.h"
#include "rollout/server/served_model.h"

namespace nibble {

enum class Endpoint { kCompletions, kChat, kGenerate };
std::string_view endpoint_path(Endpoint endpoint);

/// A request of any endpoint, checked: prompts as token ids, and what to do with them.
struct ApiRequest {
  Endpoint endpoint = Endpoint::kCompletions;
  std::vector<std::vector<int32_t>> prompts;
  int64_t num_samples = 1;     ///< of each prompt
  int64_t max_new_tokens = 0;  ///< 0: only the prompt is wanted, with echo
  kernels::SamplingParams sampling;
  std::optional<int64_t> seed;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  bool skips_special = true;  ///< in text
  bool wants_stream = false;
  bool wants_usage = false;  ///< as the last chunk of a stream
  bool wants_echo = false;
  bool wants_log_probs = false;
  int32_t num_top_log_probs = 0;
  bool wants_routes = false;
  int32_t priority = 0;

  int64_t num_answers() const { return std::ssize(prompts) * num_samples; }
  int64_t num_prompt_tokens() const;
};

/// Reads the body of a request. Unknown fields are ignored unless they would change the result;
/// those of /generate are refused. Throws RequestError naming the field at fault.
ApiRequest parse_api_request(Endpoint endpoint, std::string_view body, const ServedModel& model);

/// The engine's requests for it, num_samples for each prompt, without ids and callbacks. With a
/// seed, answer number s of prompt number p is that of `nibble generate` with the same seed.
std::vector<GenerateRequest> engine_requests(const ApiRequest& request, const ServedModel& model,
                                             uint64_t seed);

}  // namespace nibble
