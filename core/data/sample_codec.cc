#include "core/data/sample_codec.h"

#include "core/base/fail.h"
#include "proto/nibble.pb.h"

namespace nibble {

void encode_group(const SampleGroup& group, v1::SampleGroupMessage& message) {
  message.set_prompt_id(group.prompt_id);
  message.mutable_prompt()->Add(group.prompt.begin(), group.prompt.end());
  for (const Sample& sample : group.samples) {
    v1::SampleMessage& out = *message.add_samples();
    out.set_sample_index(sample.sample_index);
    out.mutable_response()->Add(sample.response.begin(), sample.response.end());
    out.mutable_log_probs()->Add(sample.log_probs.begin(), sample.log_probs.end());
    out.mutable_versions()->Add(sample.versions.begin(), sample.versions.end());
    out.set_finish_reason(sample.finish_reason);
    out.set_reward(sample.reward);
  }
}

SampleGroup decode_group(const v1::SampleGroupMessage& message) {
  SampleGroup group;
  group.prompt_id = message.prompt_id();
  group.prompt.assign(message.prompt().begin(), message.prompt().end());
  for (const v1::SampleMessage& in : message.samples()) {
    if (in.log_probs_size() != in.response_size() || in.versions_size() != in.response_size()) {
      fail(ErrorCode::kInvalidArgument,
           "sample {} of prompt {}: {} tokens, {} log-probabilities, {} versions",
           in.sample_index(), message.prompt_id(), in.response_size(), in.log_probs_size(),
           in.versions_size());
    }
    Sample sample;
    sample.sample_index = in.sample_index();
    sample.response.assign(in.response().begin(), in.response().end());
    sample.log_probs.assign(in.log_probs().begin(), in.log_probs().end());
    sample.versions.assign(in.versions().begin(), in.versions().end());
    sample.finish_reason = in.finish_reason();
    sample.reward = in.reward();
    group.samples.push_back(std::move(sample));
  }
  return group;
}

}  // namespace nibble
