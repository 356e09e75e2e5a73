#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "rollout/server/answer_part.h"
#include "rollout/server/api_request.h"

namespace nibble {

/// Writes the answers to one request in the form of its endpoint. Floats have the fewest digits
/// that read back as the same float32. Immutable; borrows its arguments.
class ResponseCodec {
 public:
  ResponseCodec(const ApiRequest& request, const ServedModel& model, std::string id);

  /// The whole answer, `parts` in order of index.
  std::string whole(std::span<const AnswerPart> parts, const Usage& usage) const;

  /// What a stream begins with, before any part: empty if nothing.
  std::string first_event(int64_t index) const;
  /// One part as an event.
  std::string event(const AnswerPart& part) const;
  /// What is counted, as an event of its own.
  std::string usage_event(const Usage& usage) const;

 private:
  OrderedJson envelope(bool is_chunk) const;
  OrderedJson choice(const AnswerPart& part, bool is_chunk) const;
  OrderedJson generated(const AnswerPart& part, bool is_chunk) const;
  OrderedJson completion_log_probs(std::span<const AnswerToken> tokens) const;
  OrderedJson chat_log_probs(std::span<const AnswerToken> tokens) const;
  std::string token_text(int32_t id) const;
  std::string token_name(int32_t id) const;

  const ApiRequest& request_;
  const ServedModel& model_;
  const std::string id_;
  const int64_t created_s_;
};

/// One server-sent event: "data: <line>\n\n". `line` has no line feed.
std::string sse_event(const std::string& line);
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

/// JSON as text, ill-formed UTF-8 replaced.
std::string dump_json(const OrderedJson& json);

}  // namespace nibble
