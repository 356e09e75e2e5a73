#include "coordinator/group_codec.h"

#include "proto/nibble.pb.h"

namespace nibble {

GroupResult decode_group(const v1::GroupSummary& message, const std::string& address) {
  GroupResult group;
  group.evaluation = message.evaluation();
  group.attempt = message.attempt();
  group.source = {message.prompt_id(), address, message.computed_tokens()};
  for (const v1::SampleSummary& s : message.samples()) {
    group.samples.push_back({s.prompt_id(), s.sample_index(), s.reward(), s.response_tokens(),
                             s.finish_reason(), s.prompt_text(), s.response_text(), s.error(),
                             s.oldest_version()});
  }
  return group;
}

std::string encode_group(const GroupResult& group) {
  v1::GroupSummary message;
  message.set_evaluation(group.evaluation);
  message.set_prompt_id(group.source.prompt_id);
  message.set_computed_tokens(group.source.computed_tokens);
  for (const SampleResult& sample : group.samples) {
    v1::SampleSummary& out = *message.add_samples();
    out.set_prompt_id(sample.prompt_id);
    out.set_sample_index(static_cast<uint32_t>(sample.sample_index));
    out.set_reward(sample.reward);
    out.set_response_tokens(sample.response_tokens);
    out.set_finish_reason(sample.finish_reason);
    out.set_prompt_text(sample.prompt_text);
    out.set_response_text(sample.response_text);
    out.set_error(sample.error);
    out.set_oldest_version(sample.oldest_version);
  }
  return message.SerializeAsString();
}

std::optional<GroupResult> decode_group(std::string_view bytes) {
  v1::GroupSummary message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return std::nullopt;
  return decode_group(message, "");
}

}  // namespace nibble
