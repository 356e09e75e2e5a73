#include "core/data/sample_codec.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "proto/nibble.pb.h"

namespace nibble {
namespace {

SampleGroup group_with_routes() {
  SampleGroup group{7, {1, 2, 3}, {2, 2, 1}, std::vector<uint8_t>(12, 5), {}};
  for (uint32_t s = 0; s < 3; ++s) {
    Sample sample;
    sample.sample_index = s;
    sample.response.assign(s + 1, static_cast<int32_t>(s));
    sample.log_probs.assign(s + 1, -0.5f);
    sample.versions.assign(s + 1, 4);
    sample.finish_reason = "stop";
    sample.reward = 0.25 * s;
    sample.routes.assign(static_cast<size_t>(s) * 4, static_cast<uint8_t>(s));
    group.samples.push_back(sample);
  }
  return group;
}

std::vector<v1::SampleGroupMessage> encoded(const SampleGroup& group) {
  std::vector<v1::SampleGroupMessage> parts;
  encode_group(group, [&](const v1::SampleGroupMessage& part) {
    parts.push_back(part);
    return true;
  });
  return parts;
}

TEST(SampleCodec, GroupsArriveAsTheyWereSent) {
  std::vector<SampleGroup> sent = {group_with_routes(), group_with_routes()};
  sent[1].prompt_id = 8;
  std::vector<SampleGroup> got;
  for (const SampleGroup& group : sent) {
    for (const auto& part : encoded(group)) decode_group_part(part, got);
  }
  ASSERT_EQ(got.size(), 2u);
  for (size_t g = 0; g < 2; ++g) {
    EXPECT_EQ(got[g].prompt_id, sent[g].prompt_id);
    EXPECT_EQ(got[g].prompt, sent[g].prompt);
    EXPECT_EQ(got[g].route_shape, sent[g].route_shape);
    EXPECT_EQ(got[g].prompt_routes, sent[g].prompt_routes);
    ASSERT_EQ(got[g].samples.size(), 3u);
    for (size_t s = 0; s < 3; ++s) {
      EXPECT_EQ(got[g].samples[s].response, sent[g].samples[s].response);
      EXPECT_EQ(got[g].samples[s].log_probs, sent[g].samples[s].log_probs);
      EXPECT_EQ(got[g].samples[s].versions, sent[g].samples[s].versions);
      EXPECT_EQ(got[g].samples[s].routes, sent[g].samples[s].routes);
      EXPECT_EQ(got[g].samples[s].reward, sent[g].samples[s].reward);
    }
  }
}

TEST(SampleCodec, AWriterThatIsGoneIsAskedNoMore) {
  int asked = 0;
  encode_group(group_with_routes(), [&](const v1::SampleGroupMessage&) { return ++asked < 2; });
  EXPECT_EQ(asked, 2);
}

TEST(SampleCodec, WhatDoesNotFitTogetherIsRefused) {
  const auto refuses = [](int part, const auto& spoil) {
    auto parts = encoded(group_with_routes());
    spoil(parts[static_cast<size_t>(part)]);
    std::vector<SampleGroup> groups;
    try {
      for (const auto& each : parts) decode_group_part(each, groups);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_TRUE(refuses(0, [](auto& m) { m.mutable_prompt_routes()->pop_back(); }));
  EXPECT_TRUE(refuses(0, [](auto& m) { m.set_route_bytes(3); }));
  EXPECT_TRUE(refuses(0, [](auto& m) { m.set_route_layers(1 << 30); }));
  EXPECT_TRUE(refuses(0, [](auto& m) { m.clear_prompt(); }));
  EXPECT_TRUE(refuses(3, [](auto& m) { m.set_prompt_id(9); }));
  EXPECT_TRUE(refuses(3, [](auto& m) { m.mutable_samples(0)->mutable_routes()->push_back(1); }));
  EXPECT_TRUE(refuses(3, [](auto& m) { m.mutable_samples(0)->mutable_log_probs()->RemoveLast(); }));
  EXPECT_TRUE(refuses(3, [](auto& m) { m.mutable_samples(0)->add_versions(1); }));
}

}  // namespace
}  // namespace nibble
