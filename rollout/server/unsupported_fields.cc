#include "rollout/server/unsupported_fields.h"

#include <array>

#include "rollout/server/request_error.h"

namespace nibble {
namespace {

struct Neutral {
  const char* name;
  double value;
};

// Numbers, with the value that changes nothing.
constexpr std::array kNumbers = {Neutral{"frequency_penalty", 0},
                                 Neutral{"presence_penalty", 0},
                                 Neutral{"min_p", 0},
                                 Neutral{"repetition_penalty", 1},
                                 Neutral{"min_tokens", 0},
                                 Neutral{"length_penalty", 1},
                                 Neutral{"typical_p", 1},
                                 Neutral{"top_a", 0},
                                 Neutral{"tfs", 1}};

// What must be absent, false or empty.
constexpr std::array kOthers = {"logit_bias",
                                "suffix",
                                "use_beam_search",
                                "include_stop_str_in_output",
                                "continue_final_message",
                                "chat_template",
                                "documents",
                                "functions",
                                "function_call",
                                "audio",
                                "reasoning_effort",
                                "verbosity",
                                "web_search_options",
                                "bad_words",
                                "allowed_token_ids",
                                "logits_processors",
                                "prompt_logprobs",
                                "truncate_prompt_tokens",
                                "guided_json",
                                "guided_regex",
                                "guided_choice",
                                "guided_grammar",
                                "structured_outputs",
                                "json_schema",
                                "regex",
                                "ebnf",
                                "grammar",
                                "lora_path"};

bool is_empty(const OrderedJson& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.is_structured() && value.empty();
}

[[noreturn]] void refuse(const RequestFields& fields, const std::string& name) {
  const std::string field = fields.full_name(name);
  refuse_field(field, "{} is not supported; leave it out", field);
}

void check_response_format(const RequestFields& fields) {
  const OrderedJson* format = fields.find("response_format");
  if (format == nullptr) return;
  const bool is_text = format->is_object() && format->contains("type") &&
                       (*format)["type"].is_string() && (*format)["type"] == "text";
  if (!is_text) {
    refuse_field("response_format",
                 "response_format must be {{\"type\": \"text\"}}: answers "
                 "cannot be forced into JSON or a schema");
  }
}

void check_modalities(const RequestFields& fields) {
  const OrderedJson* modalities = fields.find("modalities");
  if (modalities != nullptr && *modalities != OrderedJson::array({"text"})) {
    refuse_field("modalities", "modalities must be [\"text\"]");
  }
}

}  // namespace

void refuse_unsupported_fields(const RequestFields& fields) {
  for (const Neutral& number : kNumbers) {
    const OrderedJson* value = fields.find(number.name);
    if (value == nullptr) continue;
    if (!value->is_number() || value->get<double>() != number.value) refuse(fields, number.name);
  }
  for (const char* name : kOthers) {
    const OrderedJson* value = fields.find(name);
    if (value != nullptr && !is_empty(*value)) refuse(fields, name);
  }
  check_response_format(fields);
  check_modalities(fields);
}

}  // namespace nibble
