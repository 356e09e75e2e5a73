#include "core/data/sample_codec.h"

#include <string_view>

#include "core/base/fail.h"
#include "proto/nibble.pb.h"

namespace nibble {
namespace {

void encode_sample(const Sample& sample, v1::SampleMessage& out) {
  out.set_sample_index(sample.sample_index);
  out.mutable_response()->Add(sample.response.begin(), sample.response.end());
  out.mutable_log_probs()->Add(sample.log_probs.begin(), sample.log_probs.end());
  out.mutable_versions()->Add(sample.versions.begin(), sample.versions.end());
  out.set_finish_reason(sample.finish_reason);
  out.set_reward(sample.reward);
  out.set_routes(sample.routes.data(), sample.routes.size());
}

std::vector<uint8_t> decode_routes(const std::string& bytes, const RouteShape& shape,
                                   int64_t tokens, std::string_view whose) {
  if (!bytes.empty() && std::ssize(bytes) != tokens * shape.bytes_per_token()) {
    fail(ErrorCode::kInvalidArgument, "{}: {} bytes of routes for {} tokens of {}", whose,
         bytes.size(), tokens, shape.bytes_per_token());
  }
  return {bytes.begin(), bytes.end()};
}

RouteShape decode_shape(const v1::SampleGroupMessage& message) {
  constexpr int32_t kMost = 4096;
  const RouteShape shape{message.route_layers(), message.route_top_k(), message.route_bytes()};
  if (shape == RouteShape{0, 0, 0}) return {};
  if (shape.layers < 0 || shape.layers > kMost || shape.top_k < 0 || shape.top_k > kMost ||
      (shape.bytes_per_expert != 1 && shape.bytes_per_expert != 2)) {
    fail(ErrorCode::kInvalidArgument,
         "routes of prompt {}: {} layers, {} experts of {} bytes for each token",
         message.prompt_id(), shape.layers, shape.top_k, shape.bytes_per_expert);
  }
  return shape;
}

Sample decode_sample(const v1::SampleMessage& in, const SampleGroup& group) {
  const std::string whose =
      fmt::format("sample {} of prompt {}", in.sample_index(), group.prompt_id);
  if (in.log_probs_size() != in.response_size() || in.versions_size() != in.response_size()) {
    fail(ErrorCode::kInvalidArgument, "{}: {} tokens, {} log-probabilities, {} versions", whose,
         in.response_size(), in.log_probs_size(), in.versions_size());
  }
  Sample sample;
  sample.sample_index = in.sample_index();
  sample.response.assign(in.response().begin(), in.response().end());
  sample.log_probs.assign(in.log_probs().begin(), in.log_probs().end());
  sample.versions.assign(in.versions().begin(), in.versions().end());
  sample.finish_reason = in.finish_reason();
  sample.reward = in.reward();
  sample.routes = decode_routes(in.routes(), group.route_shape, in.response_size() - 1, whose);
  return sample;
}

}  // namespace

void encode_group(const SampleGroup& group,
                  const std::function<bool(const v1::SampleGroupMessage&)>& write) {
  v1::SampleGroupMessage message;
  message.set_prompt_id(group.prompt_id);
  message.mutable_prompt()->Add(group.prompt.begin(), group.prompt.end());
  message.set_prompt_routes(group.prompt_routes.data(), group.prompt_routes.size());
  if (group.route_shape.layers > 0) {
    message.set_route_layers(static_cast<int32_t>(group.route_shape.layers));
    message.set_route_top_k(static_cast<int32_t>(group.route_shape.top_k));
    message.set_route_bytes(static_cast<int32_t>(group.route_shape.bytes_per_expert));
  }
  if (!write(message)) return;
  for (const Sample& sample : group.samples) {
    v1::SampleGroupMessage part;
    part.set_prompt_id(group.prompt_id);
    encode_sample(sample, *part.add_samples());
    if (!write(part)) return;
  }
}

void decode_group_part(const v1::SampleGroupMessage& message, std::vector<SampleGroup>& groups) {
  if (message.prompt_size() > 0) {
    SampleGroup group;
    group.prompt_id = message.prompt_id();
    group.prompt.assign(message.prompt().begin(), message.prompt().end());
    group.route_shape = decode_shape(message);
    group.prompt_routes =
        decode_routes(message.prompt_routes(), group.route_shape, message.prompt_size(),
                      fmt::format("prompt {}", group.prompt_id));
    groups.push_back(std::move(group));
  }
  if (groups.empty() || groups.back().prompt_id != message.prompt_id()) {
    fail(ErrorCode::kInvalidArgument, "samples of prompt {} came without it", message.prompt_id());
  }
  for (const v1::SampleMessage& in : message.samples()) {
    groups.back().samples.push_back(decode_sample(in, groups.back()));
  }
}

}  // namespace nibble
