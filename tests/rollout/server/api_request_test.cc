#include "rollout/server/api_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/json.h"
#include "tests/rollout/server/served_fixture.h"

namespace nibble {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ApiRequestTest : public ::testing::Test {
 protected:
  ApiRequest completion(const std::string& fields) const {
    return parse_api_request(Endpoint::kCompletions, "{\"prompt\": [5, 6]" + fields + "}",
                             served_.model);
  }
  ApiRequest chat(const std::string& fields) const {
    return parse_api_request(Endpoint::kChat,
                             R"({"messages": [{"role": "user", "content": "a"}])" + fields + "}",
                             served_.model);
  }
  ApiRequest generate(const std::string& body) const {
    return parse_api_request(Endpoint::kGenerate, body, served_.model);
  }
  ServedFixture served_;
};

TEST_F(ApiRequestTest, DefaultsAreOpenAis) {
  const ApiRequest request = completion("");
  EXPECT_EQ(request.max_new_tokens, 16);
  EXPECT_EQ(request.num_samples, 1);
  EXPECT_EQ(request.sampling.temperature, 1.0f);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_FALSE(request.seed);
  EXPECT_FALSE(request.wants_stream || request.wants_log_probs || request.wants_echo);
  EXPECT_THAT(request.stop_ids, ElementsAre(486));
  const ApiRequest talk = chat("");
  EXPECT_EQ(talk.max_new_tokens, 64 + 1 - std::ssize(talk.prompts[0])) << "what fits";
}

TEST_F(ApiRequestTest, PromptsComeInFourForms) {
  const auto count = [&](const std::string& prompt) {
    return parse_api_request(Endpoint::kCompletions, "{\"prompt\": " + prompt + "}", served_.model)
        .prompts.size();
  };
  EXPECT_EQ(count("\"ab\""), 1u);
  EXPECT_EQ(count(R"(["a", "b"])"), 2u);
  EXPECT_EQ(count("[1, 2, 3]"), 1u);
  EXPECT_EQ(count("[[1], [2], [3, 4]]"), 3u);
}

TEST_F(ApiRequestTest, WrongFieldsAreNamed) {
  struct Case {
    const char* fields;
    const char* name;
  };
  const Case cases[] = {
      {R"(, "temperature": -0.1)", "temperature"},
      {R"(, "temperature": 0.0001)", "temperature"},
      {R"(, "top_p": 0)", "top_p"},
      {R"(, "n": 9)", "n"},
      {R"(, "n": 2.0)", "n"},
      {R"(, "max_tokens": 64)", "prompt"},
      {R"(, "logprobs": 21)", "logprobs"},
      {R"(, "stop": {"a": 1})", "stop"},
      {R"(, "seed": 18446744073709551615)", "seed"},
      {R"(, "stream": 1)", "stream"},
      {R"(, "stream": true, "stream_options": 3)", "stream_options"},
      {R"(, "stream": true, "stream_options": {"include_usage": 3})",
       "stream_options.include_usage"},
      {R"(, "echo": true, "stream": true)", "echo"},
      {R"(, "best_of": 2)", "best_of"},
      {R"(, "logit_bias": {"1": 2})", "logit_bias"},
      {R"(, "response_format": {"type": "json_object"})", "response_format"},
      {R"(, "stop_token_ids": [512])", "stop_token_ids"},
  };
  for (const Case& one : cases) {
    EXPECT_EQ(refusal_of([&] { completion(one.fields); }), std::string("400 ") + one.name)
        << one.fields;
  }
  EXPECT_EQ(refusal_of([&] { completion(R"(, "model": "other")"); }), "404 model");
  EXPECT_EQ(refusal_of([&] { chat(R"(, "top_logprobs": 2)"); }), "400 top_logprobs");
  EXPECT_EQ(refusal_of([&] { chat(R"(, "tool_choice": {"type": "function"})"); }),
            "400 tool_choice");
  EXPECT_EQ(refusal_of([&] { generate(R"({"input_ids": [1], "seed": 1})"); }), "400 seed");
  EXPECT_EQ(refusal_of([&] { generate(R"({"input_ids": []})"); }), "400 input_ids");
}

TEST_F(ApiRequestTest, NeutralAndUnknownFieldsAreIgnored) {
  EXPECT_EQ(completion(R"(, "user": "x", "presence_penalty": 0.0, "logit_bias": {}, "suffix": null,
                           "new_thing": [1], "repetition_penalty": 1)")
                .num_samples,
            1);
}

TEST_F(ApiRequestTest, AStopThatIsASpecialTokenStopsAsToken) {
  const ApiRequest request = completion(R"(, "stop": ["<|endoftext|>", "xy"])");
  EXPECT_THAT(request.stop_ids, ElementsAre(484, 486));
  EXPECT_THAT(request.stop, Contains("xy"));
  EXPECT_THAT(completion(R"(, "ignore_eos": true)").stop_ids, IsEmpty());
}

TEST_F(ApiRequestTest, EngineRequestsOfOnePromptShareItAndDifferInTheSample) {
  ApiRequest request = generate(R"({"input_ids": [[1, 2], [3]], "return_routes": true,
      "sampling_params": {"n": 2, "max_new_tokens": 5, "stop": "x"}, "priority": -3})");
  const auto requests = engine_requests(request, served_.model, 77);
  ASSERT_EQ(requests.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(requests[i].prompt_id, i / 2);
    EXPECT_EQ(requests[i].sample_index, i % 2);
    EXPECT_EQ(requests[i].prompt, request.prompts[i / 2]);
    EXPECT_EQ(requests[i].seed, 77u);
    EXPECT_EQ(requests[i].priority, -3);
    EXPECT_TRUE(requests[i].want_routes);
    EXPECT_NE(requests[i].stop, nullptr);
  }
}

TEST_F(ApiRequestTest, AModelWithoutTokenizerTakesTokenIdsOnly) {
  served_.model.tokenizer = nullptr;
  served_.model.encoder = nullptr;
  EXPECT_EQ(generate(R"({"input_ids": [1]})").prompts.size(), 1u);
  EXPECT_EQ(refusal_of([&] { completion(""); }), "400 ");
  EXPECT_EQ(
      refusal_of([&] { generate(R"({"input_ids": [1], "sampling_params": {"stop": "x"}})"); }),
      "400 sampling_params.stop");
}

TEST_F(ApiRequestTest, BrokenBodiesAreRefused) {
  for (const char* body : {"", "[", "[]", "1", R"({"a": 1, "a": 2})", "{\"prompt\": \"\xFF\"}"}) {
    EXPECT_EQ(refusal_of([&] { parse_api_request(Endpoint::kCompletions, body, served_.model); }),
              "400 ")
        << body;
  }
}

TEST_F(ApiRequestTest, ErrorObjectsAreOpenAis) {
  const Json json = parse_json(error_object(429, "full \xFF", "n"), "error")["error"];
  EXPECT_EQ(json["type"], "rate_limit_error");
  EXPECT_EQ(json["code"], "queue_full");
  EXPECT_EQ(json["param"], "n");
  EXPECT_THAT(json["message"].get<std::string>(), HasSubstr("full"));
  EXPECT_EQ(error_response(503, "x").retry_after_s, 1);
  EXPECT_TRUE(parse_json(error_object(400, "x"), "error")["error"]["param"].is_null());
}

}  // namespace
}  // namespace nibble
