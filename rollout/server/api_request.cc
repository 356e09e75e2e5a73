#include "rollout/server/api_request.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "rollout/engine/stop_strings.h"
#include "rollout/server/answer_text.h"
#include "rollout/server/chat_prompt.h"
#include "rollout/server/request_error.h"
#include "rollout/server/unsupported_fields.h"

namespace nibble {
namespace {

constexpr int64_t kDefaultCompletionTokens = 16;  // OpenAI's
constexpr int64_t kDefaultGenerateTokens = 128;   // SGLang's
constexpr int64_t kMaxTopLogProbs = 20;
constexpr int64_t kMaxTopLogProbsOfAnswer = 1'000'000;
constexpr size_t kMaxStopIds = 128;
constexpr float kMinTemperature = 1e-3f;
constexpr float kMaxTemperature = 1e3f;

void read_sampling(const RequestFields& fields, ApiRequest& request) {
  kernels::SamplingParams& sampling = request.sampling;
  sampling.temperature =
      static_cast<float>(fields.number_or("temperature", 0, double{kMaxTemperature}, 1));
  if (sampling.temperature != 0.0f && sampling.temperature < kMinTemperature) {
    const std::string field = fields.full_name("temperature");
    refuse_field(field, "{} is {}; it must be 0 (greedy) or from {} to {}", field,
                 sampling.temperature, kMinTemperature, kMaxTemperature);
  }
  sampling.top_p = static_cast<float>(fields.number_or("top_p", 0, 1, 1));
  if (sampling.top_p <= 0.0f) {
    const std::string field = fields.full_name("top_p");
    refuse_field(field, "{} must be above 0 and at most 1", field);
  }
  // -1 and 0: all.
  sampling.top_k =
      static_cast<int32_t>(std::max<int64_t>(0, fields.integer_or("top_k", -1, INT32_MAX, 0)));
  request.num_samples = fields.integer_or("n", 1, 1 << 16, 1);
  request.seed = fields.integer("seed", INT64_MIN, INT64_MAX);
}

void read_stops(const RequestFields& fields, const ServedModel& model, ApiRequest& request) {
  request.stop_ids = fields.token_ids("stop_token_ids", model.vocab, kMaxStopIds);
  if (!fields.boolean_or("ignore_eos", false)) {
    request.stop_ids.insert(request.stop_ids.end(), model.stop_ids.begin(), model.stop_ids.end());
  }
  const std::string field = fields.full_name("stop");
  request.stop = fields.texts("stop", StopStrings::kMaxStrings);
  if (request.stop.empty()) return;
  if (model.tokenizer == nullptr) {
    refuse_field(field, "{} needs a tokenizer, which this model has not; use stop_token_ids",
                 field);
  }
  try {
    (void)StopStrings(request.stop);
  } catch (const Error& error) {
    throw RequestError(400, field, error.what());
  }
  // A special token is not in the text that is searched: it stops as the token it is.
  for (const std::string& text : request.stop) {
    const int32_t id = model.tokenizer->token_to_id(text);
    if (id >= 0 && id < model.vocab && model.tokenizer->is_special(id)) {
      request.stop_ids.push_back(id);
    }
  }
}

std::vector<int32_t> encode_text(const std::string& text, const ServedModel& model,
                                 const std::string& field) {
  if (std::ssize(text) > model.max_prompt_bytes) {
    refuse_field(field, "{} has {} bytes, more than fit into the {} tokens of a sequence", field,
                 text.size(), model.max_tokens);
  }
  return model.encoder->encode(text);
}

bool is_list_of(const OrderedJson& value, bool (OrderedJson::*has_type)() const noexcept) {
  return value.is_array() && !value.empty() &&
         std::all_of(value.begin(), value.end(),
                     [has_type](const OrderedJson& item) { return (item.*has_type)(); });
}

// A list of token ids, or of such lists.
void read_id_lists(const OrderedJson& value, const ServedModel& model, const std::string& field,
                   ApiRequest& request) {
  if (!is_list_of(value, &OrderedJson::is_array)) {
    request.prompts.push_back(token_ids_of(value, model.vocab, field));
    return;
  }
  for (const OrderedJson& ids : value) {
    request.prompts.push_back(token_ids_of(ids, model.vocab, field));
  }
}

void read_prompt(const RequestFields& fields, const ServedModel& model, ApiRequest& request) {
  const OrderedJson* prompt = fields.find("prompt");
  if (prompt == nullptr) refuse_field("prompt", "prompt is missing");
  const auto check_count = [&](size_t count) {
    if (static_cast<int64_t>(count) <= model.max_samples) return;
    refuse_field("prompt", "{} prompts; at most {} are allowed", count, model.max_samples);
  };
  if (prompt->is_string()) {
    request.prompts.push_back(encode_text(prompt->get<std::string>(), model, "prompt"));
  } else if (is_list_of(*prompt, &OrderedJson::is_string)) {
    check_count(prompt->size());
    for (const OrderedJson& text : *prompt) {
      request.prompts.push_back(encode_text(text.get<std::string>(), model, "prompt"));
    }
  } else if (is_list_of(*prompt, &OrderedJson::is_array) ||
             is_list_of(*prompt, &OrderedJson::is_number_integer)) {
    if ((*prompt)[0].is_array()) check_count(prompt->size());
    read_id_lists(*prompt, model, "prompt", request);
  } else {
    refuse_field("prompt",
                 "prompt must be a string, a list of strings, a list of token ids or a list of "
                 "such lists");
  }
}

// Each of them is some hundred bytes of the answer.
void check_log_probs(const ApiRequest& request) {
  const int64_t of_token = request.num_top_log_probs;
  const int64_t samples = request.num_samples * std::ssize(request.prompts);
  if (of_token == 0 || samples * request.max_new_tokens <= kMaxTopLogProbsOfAnswer / of_token)
    return;
  refuse_field("logprobs",
               "{} answers of up to {} tokens with {} log-probabilities each; at most {} of them "
               "are given in one answer",
               samples, request.max_new_tokens, of_token, kMaxTopLogProbsOfAnswer);
}

void check_fit(const ServedModel& model, const std::string& field, int64_t default_tokens,
               std::optional<int64_t> wanted, ApiRequest& request) {
  for (size_t p = 0; p < request.prompts.size(); ++p) {
    const int64_t tokens = std::ssize(request.prompts[p]);
    if (tokens == 0) refuse_field(field, "prompt number {} has no tokens", p);
    if (tokens > model.max_tokens) {
      refuse_field(field, "prompt number {} has {} tokens; a sequence may have {}", p, tokens,
                   model.max_tokens);
    }
  }
  int64_t longest = 0;
  for (const auto& prompt : request.prompts) longest = std::max(longest, std::ssize(prompt));
  // The last new token is never computed and needs no position.
  const int64_t room = model.max_tokens - longest + 1;
  request.max_new_tokens = wanted.value_or(std::min(default_tokens, room));
  if (request.max_new_tokens > room) {
    refuse_field(field,
                 "{} prompt tokens and {} new ones do not fit into the {} positions of a sequence",
                 longest, request.max_new_tokens, model.max_tokens);
  }
  if (request.num_samples > model.max_samples / std::max<int64_t>(1, std::ssize(request.prompts))) {
    refuse_field("n", "{} prompts with {} answers each; at most {} answers are allowed",
                 request.prompts.size(), request.num_samples, model.max_samples);
  }
  check_log_probs(request);
}

void check_model_name(const RequestFields& fields, const ServedModel& model) {
  const auto name = fields.text("model");
  if (!name || *name == model.name) return;
  throw RequestError(
      404, "model",
      fmt::format("the model '{}' does not exist; this server has '{}'", *name, model.name));
}

void read_stream(const RequestFields& fields, ApiRequest& request) {
  request.wants_stream = fields.boolean_or("stream", false);
  const OrderedJson* options = fields.find("stream_options");
  if (options == nullptr) return;
  if (!request.wants_stream) {
    refuse_field("stream_options", "stream_options is for stream: true only");
  }
  request.wants_usage =
      RequestFields(*options, "stream_options.").boolean_or("include_usage", false);
}

// What both of OpenAI's endpoints have.
void read_common(const RequestFields& fields, const ServedModel& model, ApiRequest& request) {
  check_model_name(fields, model);
  refuse_unsupported_fields(fields);
  if (model.tokenizer == nullptr) {
    refuse_field("", "this model has no tokenizer; use /generate with token ids");
  }
  read_sampling(fields, request);
  read_stops(fields, model, request);
  read_stream(fields, request);
  request.skips_special = fields.boolean_or("skip_special_tokens", true);
  request.priority = static_cast<int32_t>(fields.integer_or("priority", INT32_MIN, INT32_MAX, 0));
}

void read_completion(const RequestFields& fields, const ServedModel& model, ApiRequest& request) {
  read_common(fields, model, request);
  request.wants_echo = fields.boolean_or("echo", false);
  if (fields.integer_or("best_of", 1, 1 << 16, request.num_samples) != request.num_samples) {
    refuse_field("best_of", "best_of is not supported; leave it out, or make it n");
  }
  if (const auto top = fields.integer("logprobs", 0, kMaxTopLogProbs)) {
    request.wants_log_probs = true;
    request.num_top_log_probs = static_cast<int32_t>(*top);
  }
  if (request.wants_echo && request.wants_stream) {
    refuse_field("echo", "echo cannot be streamed; leave out stream");
  }
  const auto wanted = fields.integer("max_tokens", request.wants_echo ? 0 : 1, INT32_MAX);
  read_prompt(fields, model, request);
  check_fit(model, "prompt", kDefaultCompletionTokens, wanted, request);
}

void read_chat(const RequestFields& fields, const ServedModel& model, ApiRequest& request) {
  read_common(fields, model, request);
  if (fields.boolean_or("echo", false)) refuse_field("echo", "echo is for /v1/completions only");
  request.wants_log_probs = fields.boolean_or("logprobs", false);
  const auto top = fields.integer("top_logprobs", 0, kMaxTopLogProbs);
  if (top.value_or(0) > 0 && !request.wants_log_probs) {
    refuse_field("top_logprobs", "top_logprobs needs logprobs: true");
  }
  request.num_top_log_probs = static_cast<int32_t>(top.value_or(0));
  auto wanted = fields.integer("max_completion_tokens", 1, INT32_MAX);
  if (!wanted) wanted = fields.integer("max_tokens", 1, INT32_MAX);
  request.prompts.push_back(encode_chat_prompt(fields, model));
  check_fit(model, "messages", INT32_MAX, wanted, request);
}

void read_generate(const RequestFields& fields, const ServedModel& model, ApiRequest& request) {
  fields.refuse_others({"model", "input_ids", "sampling_params", "stream", "top_logprobs",
                        "return_routes", "priority"});
  check_model_name(fields, model);
  const OrderedJson* ids = fields.find("input_ids");
  if (ids == nullptr) refuse_field("input_ids", "input_ids is missing");
  read_id_lists(*ids, model, "input_ids", request);
  request.wants_stream = fields.boolean_or("stream", false);
  request.wants_routes = fields.boolean_or("return_routes", false);
  if (request.wants_stream && request.wants_routes) {
    refuse_field("return_routes", "routes cannot be streamed; leave out stream");
  }
  request.wants_log_probs = true;
  request.num_top_log_probs =
      static_cast<int32_t>(fields.integer_or("top_logprobs", 0, kMaxTopLogProbs, 0));
  request.priority = static_cast<int32_t>(fields.integer_or("priority", INT32_MIN, INT32_MAX, 0));
  static const OrderedJson kNone = OrderedJson::object();
  const OrderedJson* given = fields.find("sampling_params");
  const RequestFields params(given == nullptr ? kNone : *given, "sampling_params.");
  params.refuse_others({"temperature", "top_p", "top_k", "max_new_tokens", "n", "seed", "stop",
                        "stop_token_ids", "ignore_eos"});
  read_sampling(params, request);
  read_stops(params, model, request);
  check_fit(model, "input_ids", kDefaultGenerateTokens,
            params.integer("max_new_tokens", 1, INT32_MAX), request);
}

}  // namespace

std::string_view endpoint_path(Endpoint endpoint) {
  switch (endpoint) {
    case Endpoint::kCompletions:
      return "/v1/completions";
    case Endpoint::kChat:
      return "/v1/chat/completions";
    case Endpoint::kGenerate:
      break;
  }
  return "/generate";
}

int64_t ApiRequest::num_prompt_tokens() const {
  int64_t tokens = 0;
  for (const auto& prompt : prompts) tokens += std::ssize(prompt);
  return tokens;
}

ApiRequest parse_api_request(Endpoint endpoint, std::string_view body, const ServedModel& model) {
  ApiRequest request;
  request.endpoint = endpoint;
  try {
    const OrderedJson json = parse_ordered_json(body, "the body");
    const RequestFields fields(json);
    if (endpoint == Endpoint::kCompletions) read_completion(fields, model, request);
    if (endpoint == Endpoint::kChat) read_chat(fields, model, request);
    if (endpoint == Endpoint::kGenerate) read_generate(fields, model, request);
  } catch (const RequestError&) {
    throw;
  } catch (const Error& error) {
    throw RequestError(http_status(error.code()), "", error.what());
  }
  std::sort(request.stop_ids.begin(), request.stop_ids.end());
  request.stop_ids.erase(std::unique(request.stop_ids.begin(), request.stop_ids.end()),
                         request.stop_ids.end());
  return request;
}

std::vector<GenerateRequest> engine_requests(const ApiRequest& request, const ServedModel& model,
                                             uint64_t seed) {
  std::vector<GenerateRequest> requests;
  if (request.max_new_tokens == 0) return requests;
  for (size_t p = 0; p < request.prompts.size(); ++p) {
    for (int64_t s = 0; s < request.num_samples; ++s) {
      GenerateRequest one;
      one.prompt_id = p;
      one.sample_index = static_cast<uint32_t>(s);
      one.prompt = request.prompts[p];
      one.max_new_tokens = request.max_new_tokens;
      one.sampling = request.sampling;
      one.seed = seed;
      one.stop_ids = request.stop_ids;
      if (!request.stop.empty()) {
        one.stop = std::make_unique<AnswerStop>(*model.tokenizer, request.stop,
                                                DecodeOptions{request.skips_special});
      }
      one.want_routes = request.wants_routes;
      one.want_plain_log_probs = request.wants_log_probs;
      one.num_top_log_probs = request.num_top_log_probs;
      one.priority = request.priority;
      requests.push_back(std::move(one));
    }
  }
  return requests;
}

}  // namespace nibble
