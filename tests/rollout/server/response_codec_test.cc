#include "rollout/server/response_codec.h"

#include <gtest/gtest.h>

#include "core/base/json.h"
#include "rollout/server/base64.h"
#include "tests/rollout/server/served_fixture.h"

namespace nibble {
namespace {

class ResponseCodecTest : public ::testing::Test {
 protected:
  ResponseCodecTest() {
    request_.wants_log_probs = true;
    request_.num_top_log_probs = 1;
    part_.text = "a";
    part_.tokens = {{.id = token("a"),
                     .log_prob = -0.1f,
                     .plain_log_prob = -0.3f,
                     .top = {{token("b"), -0.25f}},
                     .version = 7}};
    part_.reason = FinishReason::kLength;
  }
  int32_t token(const char* text) const { return served_.model.tokenizer->token_to_id(text); }
  Json whole(Endpoint endpoint) {
    request_.endpoint = endpoint;
    const ResponseCodec codec(request_, served_.model, "id-1");
    return parse_json(codec.whole(std::span(&part_, 1), {3, 1, 2}), "answer");
  }

  ServedFixture served_;
  ApiRequest request_;
  AnswerPart part_;
};

TEST_F(ResponseCodecTest, CompletionsHaveTheirFormOfLogProbabilities) {
  const Json json = whole(Endpoint::kCompletions);
  EXPECT_EQ(json["object"], "text_completion");
  EXPECT_EQ(json["usage"]["total_tokens"], 4);
  EXPECT_EQ(json["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
  const Json& choice = json["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_EQ(choice["logprobs"]["tokens"], Json::array({"a"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"].dump(), "[-0.3]") << "digits of a float32";
  EXPECT_EQ(choice["logprobs"]["top_logprobs"].dump(), R"([{"a":-0.3,"b":-0.25}])");
}

TEST_F(ResponseCodecTest, ChatsHaveTheirs) {
  const Json json = whole(Endpoint::kChat);
  EXPECT_EQ(json["choices"][0]["message"]["content"], "a");
  const Json& entry = json["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(entry["token"], "a");
  EXPECT_EQ(entry["bytes"], Json::array({97}));
  EXPECT_EQ(entry["top_logprobs"][0]["token"], "b");
}

TEST_F(ResponseCodecTest, GenerateHasIdsAndBothLogProbabilities) {
  const Json answer = whole(Endpoint::kGenerate)["answers"][0];
  EXPECT_EQ(answer["output_ids"], Json::array({token("a")}));
  EXPECT_EQ(answer["logprobs"].dump(), "[-0.1]");
  EXPECT_EQ(answer["plain_logprobs"].dump(), "[-0.3]");
  EXPECT_EQ(answer["versions"], Json::array({7}));
  EXPECT_EQ(answer["top_logprobs"][0][0][0], token("b"));
  EXPECT_FALSE(answer.contains("routes"));
}

TEST_F(ResponseCodecTest, ATokenThatIsNoTextIsNamedByItsBytes) {
  int32_t broken = 0;
  while (served_.model.tokenizer->id_to_token_bytes(broken) != "\xB4") ++broken;
  part_.tokens[0].id = broken;
  EXPECT_EQ(whole(Endpoint::kCompletions)["choices"][0]["logprobs"]["tokens"][0], R"(bytes:\xb4)");
  const Json entry = whole(Endpoint::kChat)["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(entry["token"], "\uFFFD");
  EXPECT_EQ(entry["bytes"], Json::array({0xB4}));
}

TEST_F(ResponseCodecTest, AnEventIsOneLineOfDataAndAnEmptyOne) {
  request_.endpoint = Endpoint::kChat;
  request_.wants_usage = true;
  part_.text = "two\nlines";
  const ResponseCodec codec(request_, served_.model, "id-1");
  for (const std::string& event :
       {codec.first_event(0), codec.event(part_), codec.usage_event({})}) {
    EXPECT_TRUE(event.starts_with("data: {"));
    EXPECT_EQ(event.find('\n'), event.size() - 2);
    EXPECT_TRUE(event.ends_with("}\n\n"));
    const Json json = parse_json(event.substr(6, event.size() - 8), "event");
    EXPECT_EQ(json["object"], "chat.completion.chunk");
    EXPECT_TRUE(json.contains("usage"));
  }
}

TEST(Base64, IsThatOfRfc4648) {
  const auto encode = [](std::string_view text) {
    return to_base64({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  };
  EXPECT_EQ(encode(""), "");
  EXPECT_EQ(encode("f"), "Zg==");
  EXPECT_EQ(encode("fo"), "Zm8=");
  EXPECT_EQ(encode("foobar"), "Zm9vYmFy");
}

}  // namespace
}  // namespace nibble
