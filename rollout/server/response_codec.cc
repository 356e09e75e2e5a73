#include "rollout/server/response_codec.h"

#include <fmt/format.h>

#include <cstdlib>
#include <utility>

#include "core/base/clock.h"
#include "core/tokenizer/utf8.h"
#include "rollout/server/base64.h"

namespace nibble {
namespace {

// The double that is written with the digits of the float32.
double shortest(float value) { return std::strtod(fmt::format("{}", value).c_str(), nullptr); }

OrderedJson usage_json(const Usage& usage) {
  OrderedJson json;
  json["prompt_tokens"] = usage.prompt_tokens;
  json["completion_tokens"] = usage.completion_tokens;
  json["total_tokens"] = usage.prompt_tokens + usage.completion_tokens;
  json["prompt_tokens_details"] = {{"cached_tokens", usage.cached_tokens}};
  return json;
}

OrderedJson reason_json(const AnswerPart& part) {
  if (!part.reason) return nullptr;
  return std::string(finish_reason_name(*part.reason));
}

OrderedJson bytes_json(std::string_view bytes) {
  OrderedJson json = OrderedJson::array();
  for (const char byte : bytes) json.push_back(static_cast<unsigned char>(byte));
  return json;
}

OrderedJson routes_json(const Routes& routes) {
  OrderedJson json;
  json["shape"] = {routes.positions, routes.layers, routes.top_k};
  json["dtype"] = routes.bytes_per_expert == 1 ? "uint8" : "uint16";
  json["base64"] = to_base64(routes.bytes);
  return json;
}

}  // namespace

std::string dump_json(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

std::string sse_event(const std::string& line) { return "data: " + line + "\n\n"; }

ResponseCodec::ResponseCodec(const ApiRequest& request, const ServedModel& model, std::string id)
    : request_(request), model_(model), id_(std::move(id)), created_s_(unix_ms() / 1000) {}

OrderedJson ResponseCodec::envelope(bool is_chunk) const {
  OrderedJson json;
  json["id"] = id_;
  if (request_.endpoint == Endpoint::kGenerate) return json;
  if (request_.endpoint == Endpoint::kCompletions) json["object"] = "text_completion";
  if (request_.endpoint == Endpoint::kChat) {
    json["object"] = is_chunk ? "chat.completion.chunk" : "chat.completion";
  }
  json["created"] = created_s_;
  json["model"] = model_.name;
  return json;
}

std::string ResponseCodec::whole(std::span<const AnswerPart> parts, const Usage& usage) const {
  OrderedJson json = envelope(false);
  const bool is_generate = request_.endpoint == Endpoint::kGenerate;
  OrderedJson& choices = json[is_generate ? "answers" : "choices"] = OrderedJson::array();
  for (const AnswerPart& part : parts) {
    choices.push_back(is_generate ? generated(part, false) : choice(part, false));
  }
  json["usage"] = usage_json(usage);
  return dump_json(json);
}

std::string ResponseCodec::first_event(int64_t index) const {
  if (request_.endpoint != Endpoint::kChat) return {};
  OrderedJson json = envelope(true);
  OrderedJson first;
  first["index"] = index;
  first["delta"] = {{"role", "assistant"}, {"content", ""}};
  first["logprobs"] = nullptr;
  first["finish_reason"] = nullptr;
  json["choices"] = OrderedJson::array({first});
  if (request_.wants_usage) json["usage"] = nullptr;
  return sse_event(dump_json(json));
}

std::string ResponseCodec::event(const AnswerPart& part) const {
  OrderedJson json = envelope(true);
  if (request_.endpoint == Endpoint::kGenerate) {
    json.update(generated(part, true));
    return sse_event(dump_json(json));
  }
  json["choices"] = OrderedJson::array({choice(part, true)});
  if (request_.wants_usage) json["usage"] = nullptr;
  return sse_event(dump_json(json));
}

std::string ResponseCodec::usage_event(const Usage& usage) const {
  OrderedJson json = envelope(true);
  if (request_.endpoint != Endpoint::kGenerate) json["choices"] = OrderedJson::array();
  json["usage"] = usage_json(usage);
  return sse_event(dump_json(json));
}

OrderedJson ResponseCodec::choice(const AnswerPart& part, bool is_chunk) const {
  OrderedJson json;
  json["index"] = part.index;
  const bool is_chat = request_.endpoint == Endpoint::kChat;
  if (!is_chat) {
    json["text"] = part.text;
  } else if (is_chunk) {
    json["delta"] = OrderedJson::object();
    if (!part.text.empty()) json["delta"]["content"] = part.text;
  } else {
    json["message"] = {{"role", "assistant"}, {"content", part.text}};
  }
  json["logprobs"] = nullptr;
  if (request_.wants_log_probs && (!part.tokens.empty() || !is_chunk)) {
    json["logprobs"] = is_chat ? chat_log_probs(part.tokens) : completion_log_probs(part.tokens);
  }
  json["finish_reason"] = reason_json(part);
  return json;
}

OrderedJson ResponseCodec::generated(const AnswerPart& part, bool is_chunk) const {
  OrderedJson ids = OrderedJson::array();
  OrderedJson log_probs = OrderedJson::array();
  OrderedJson plain = OrderedJson::array();
  OrderedJson versions = OrderedJson::array();
  OrderedJson top = OrderedJson::array();
  for (const AnswerToken& token : part.tokens) {
    ids.push_back(token.id);
    log_probs.push_back(shortest(token.log_prob));
    plain.push_back(shortest(token.plain_log_prob.value_or(0.0f)));
    versions.push_back(token.version);
    OrderedJson likeliest = OrderedJson::array();
    for (const TokenLogProb& one : token.top) {
      likeliest.push_back(OrderedJson::array({one.token, shortest(one.log_prob)}));
    }
    top.push_back(std::move(likeliest));
  }
  OrderedJson json;
  json["index"] = part.index;
  json["output_ids"] = std::move(ids);
  json["logprobs"] = std::move(log_probs);
  json["plain_logprobs"] = std::move(plain);
  json["versions"] = std::move(versions);
  if (request_.num_top_log_probs > 0) json["top_logprobs"] = std::move(top);
  json["finish_reason"] = reason_json(part);
  if (!is_chunk) json["cached_prompt_tokens"] = part.cached_prompt_tokens;
  if (request_.wants_routes) json["routes"] = routes_json(part.routes);
  return json;
}

// A token alone may be a part of a character.
std::string ResponseCodec::token_text(int32_t id) const {
  return model_.tokenizer->decode(std::span(&id, 1));
}

// As OpenAI's completions write tokens that are no text: "bytes:\xe2\x82".
std::string ResponseCodec::token_name(int32_t id) const {
  const std::string_view bytes = model_.tokenizer->id_to_token_bytes(id);
  if (find_invalid_utf8(bytes) == std::string_view::npos) return std::string(bytes);
  std::string name = "bytes:";
  for (const char byte : bytes) {
    name += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  }
  return name;
}

OrderedJson ResponseCodec::completion_log_probs(std::span<const AnswerToken> tokens) const {
  OrderedJson names = OrderedJson::array();
  OrderedJson log_probs = OrderedJson::array();
  OrderedJson tops = OrderedJson::array();
  OrderedJson offsets = OrderedJson::array();
  for (const AnswerToken& token : tokens) {
    names.push_back(token_name(token.id));
    offsets.push_back(token.text_offset);
    if (!token.plain_log_prob) {
      log_probs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    log_probs.push_back(shortest(*token.plain_log_prob));
    // With the token itself, as OpenAI does, also if others are likelier.
    OrderedJson top = OrderedJson::object();
    for (const TokenLogProb& one : token.top) {
      top.emplace(token_name(one.token), shortest(one.log_prob));
    }
    if (request_.num_top_log_probs > 0) {
      top.emplace(token_name(token.id), shortest(*token.plain_log_prob));
    }
    tops.push_back(std::move(top));
  }
  OrderedJson json;
  json["tokens"] = std::move(names);
  json["token_logprobs"] = std::move(log_probs);
  json["top_logprobs"] = request_.num_top_log_probs > 0 ? std::move(tops) : OrderedJson(nullptr);
  json["text_offset"] = std::move(offsets);
  return json;
}

OrderedJson ResponseCodec::chat_log_probs(std::span<const AnswerToken> tokens) const {
  const auto entry = [this](int32_t id, float log_prob) {
    OrderedJson json;
    json["token"] = token_text(id);
    json["logprob"] = shortest(log_prob);
    json["bytes"] = bytes_json(model_.tokenizer->id_to_token_bytes(id));
    return json;
  };
  OrderedJson content = OrderedJson::array();
  for (const AnswerToken& token : tokens) {
    OrderedJson json = entry(token.id, token.plain_log_prob.value_or(0.0f));
    OrderedJson top = OrderedJson::array();
    for (const TokenLogProb& one : token.top) top.push_back(entry(one.token, one.log_prob));
    json["top_logprobs"] = std::move(top);
    content.push_back(std::move(json));
  }
  return {{"content", std::move(content)}};
}

}  // namespace nibble
