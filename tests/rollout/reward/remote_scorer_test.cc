#include "rollout/reward/remote_scorer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "tests/rollout/reward/http_stub.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr milliseconds kPatience(20'000);

RemoteScorerOptions options_of(const std::string& url, int64_t attempts = 3,
                               milliseconds timeout = kPatience) {
  return {url, timeout, attempts};
}

/// The length of each response, or what stands for it in `special`.
StubAnswer lengths(const std::string& body, const Json& special = Json::object()) {
  Json rewards = Json::array();
  const Json request = Json::parse(body);
  for (const Json& sample : request["samples"]) {
    const std::string response = sample["response"];
    rewards.push_back(special.contains(response) ? special[response] : Json(response.size()));
  }
  return answer_with(200, Json{{"rewards", rewards}}.dump());
}

std::vector<RewardOutcome> score_all(const RemoteScorer& scorer,
                                     const std::vector<std::string>& responses) {
  const Json label = "label";
  std::vector<ScoredText> samples;
  for (const std::string& response : responses) samples.push_back({response, &label});
  return scorer.score_all(samples);
}

ErrorCode code_of(const RewardOutcome& outcome) {
  if (const auto* error = std::get_if<Error>(&outcome)) return error->code();
  ADD_FAILURE() << "scored " << std::get<double>(outcome);
  return ErrorCode::kInternal;
}

/// The code of the one sample that is asked for, and how many requests that took.
std::pair<ErrorCode, int> failure_with(const HttpStub::Answer& answer, int64_t attempts = 2,
                                       milliseconds timeout = kPatience) {
  HttpStub server(answer);
  const RemoteScorer scorer(options_of(server.url(), attempts, timeout));
  const ErrorCode code = code_of(score_all(scorer, {"a"})[0]);
  return {code, server.num_requests()};
}

TEST(RemoteScorer, SendsResponsesAndLabelsAndTakesTheScoresInOrder) {
  std::string seen;
  HttpStub server([&](const std::string& body, int) {
    seen = body;
    return lengths(body);
  });
  const RemoteScorer scorer(options_of(server.url() + "/score"));
  const Json label = {{"answer", 7}};
  EXPECT_EQ(scorer.score("caf\xc3\xa9\n", label), 6);
  EXPECT_EQ(Json::parse(seen),
            Json({{"samples", {{{"response", "caf\xc3\xa9\n"}, {"label", label}}}}}));
  const auto outcomes = score_all(scorer, {"", "abc", "de"});
  EXPECT_EQ(std::get<double>(outcomes[0]), 0);
  EXPECT_EQ(std::get<double>(outcomes[1]), 3);
  EXPECT_EQ(std::get<double>(outcomes[2]), 2);
  EXPECT_EQ(server.num_requests(), 2);
}

TEST(RemoteScorer, AsksForManyInSeveralRequests) {
  HttpStub server([](const std::string& body, int) { return lengths(body); });
  const RemoteScorer scorer(options_of(server.url()));
  std::vector<std::string> responses;
  for (size_t i = 0; i < 2 * scorer.max_batch() + 1; ++i) responses.emplace_back(i, 'x');
  const auto outcomes = score_all(scorer, responses);
  ASSERT_EQ(outcomes.size(), responses.size());
  for (size_t i = 0; i < outcomes.size(); ++i) {
    EXPECT_EQ(std::get<double>(outcomes[i]), static_cast<double>(i));
  }
  EXPECT_EQ(server.num_requests(), 3);
}

TEST(RemoteScorer, AnErrorOfOneSampleLeavesTheOthersTheirScores) {
  const Json special = {{"bad", {{"error", "no verdict"}}}, {"odd", "1"}, {"null", nullptr}};
  HttpStub server([&](const std::string& body, int) { return lengths(body, special); });
  const RemoteScorer scorer(options_of(server.url()));
  const auto outcomes = score_all(scorer, {"bad", "fine", "odd", "null"});
  EXPECT_EQ(code_of(outcomes[0]), ErrorCode::kInvalidArgument);
  EXPECT_THAT(std::get<Error>(outcomes[0]).what(), HasSubstr("no verdict"));
  EXPECT_EQ(std::get<double>(outcomes[1]), 4);
  EXPECT_EQ(code_of(outcomes[2]), ErrorCode::kUnavailable);
  EXPECT_EQ(code_of(outcomes[3]), ErrorCode::kUnavailable);
  EXPECT_THROW(scorer.score("bad", "label"), Error);
}

TEST(RemoteScorer, TriesAgainAfterAFailureOfTheServer) {
  HttpStub server([](const std::string& body, int request) {
    if (request == 0) return answer_with(503, "busy");
    if (request == 1) return StubAnswer{};  // hangs up
    return lengths(body);
  });
  const RemoteScorer scorer(options_of(server.url(), 3));
  EXPECT_EQ(scorer.score("abc", "label"), 3);
  EXPECT_EQ(server.num_requests(), 3);
}

TEST(RemoteScorer, TriesAgainWhenAnAttemptTakesTooLong) {
  HttpStub server([](const std::string& body, int request) {
    return request == 0 ? StubAnswer{"", true} : lengths(body);
  });
  const RemoteScorer scorer(options_of(server.url(), 2, milliseconds(2'000)));
  EXPECT_EQ(scorer.score("abc", "label"), 3);
  EXPECT_EQ(server.num_requests(), 2);
}

using Failure = std::pair<ErrorCode, int>;

TEST(RemoteScorer, AFailureOfTheServerIsNoScore) {
  for (const int status : {204, 301, 429, 500, 503}) {
    EXPECT_EQ(failure_with([&](auto&, int) { return answer_with(status, ""); }),
              Failure(ErrorCode::kUnavailable, 2))
        << status;
  }
  for (const char* body : {"", "x", "[1]", "{}", R"({"rewards":1})", R"({"rewards":[]})",
                           R"({"rewards":[1,2]})", R"({"rewards":[1],"rewards":[1]})"}) {
    EXPECT_EQ(failure_with([&](auto&, int) { return answer_with(200, body); }),
              Failure(ErrorCode::kUnavailable, 2))
        << body;
  }
  EXPECT_EQ(failure_with([](auto&, int) { return StubAnswer{"no HTTP at all\r\n\r\n"}; }),
            Failure(ErrorCode::kUnavailable, 2));
  EXPECT_EQ(failure_with(
                [](auto&, int) {
                  return StubAnswer{"", true};
                },
                2, milliseconds(200)),
            Failure(ErrorCode::kDeadlineExceeded, 2));
}

TEST(RemoteScorer, ARefusalIsNotTriedAgain) {
  for (const int status : {400, 404, 422}) {
    EXPECT_EQ(failure_with([&](auto&, int) { return answer_with(status, "no"); }),
              Failure(ErrorCode::kInvalidArgument, 1))
        << status;
  }
}

TEST(RemoteScorer, AnAnswerIsBoundedInSizeAndDepth) {
  const std::string long_text = "{\"rewards\":[1]}" + std::string(17 << 20, ' ');
  const std::string chunk = fmt::format("{:x}\r\n{}\r\n0\r\n\r\n", long_text.size(), long_text);
  for (const StubAnswer& answer :
       {answer_with(200, long_text),
        StubAnswer{"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk},
        StubAnswer{"HTTP/1.1 200 x\r\n\r\n" + long_text}}) {
    EXPECT_EQ(failure_with([&](auto&, int) { return answer; }, 1).first, ErrorCode::kUnavailable)
        << answer.text.substr(0, 60);
  }
  const std::string deep = "{\"rewards\":" + std::string(1 << 20, '[');
  EXPECT_EQ(failure_with([&](auto&, int) { return answer_with(200, deep); }, 1).first,
            ErrorCode::kUnavailable);
}

TEST(RemoteScorer, NobodyThereIsUnavailable) {
  std::string url;
  {
    url = HttpStub([](auto&, int) { return StubAnswer{}; }).url();
  }
  const RemoteScorer scorer(options_of(url, 2));
  EXPECT_EQ(code_of(score_all(scorer, {"a"})[0]), ErrorCode::kUnavailable);
}

TEST(RemoteScorer, RefusesOptionsThatMakeNoSense) {
  for (const char* url : {"", "127.0.0.1:80", "https://host:80/", "http://host:99999/", "http://",
                          "http://host:80/a b", "http://host:80/a#b"}) {
    EXPECT_THROW(RemoteScorer(options_of(url)), Error) << url;
  }
  EXPECT_NO_THROW(RemoteScorer(options_of("http://host:80/a/b?c=d")));
  EXPECT_THROW(RemoteScorer(options_of("http://host:80", 0)), Error);
  EXPECT_THROW(RemoteScorer(options_of("http://host:80", 11)), Error);
  EXPECT_THROW(RemoteScorer(options_of("http://host:80", 1, milliseconds(0))), Error);
  EXPECT_THROW(RemoteScorer(options_of("http://host:80", 1, milliseconds(3'600'001))), Error);
}

TEST(LongestWait, CountsAttemptsAndPauses) {
  EXPECT_EQ(longest_wait(options_of("", 1, milliseconds(10))), milliseconds(10));
  EXPECT_EQ(longest_wait(options_of("", 3, milliseconds(10))), milliseconds(30 + 50 + 100));
}

}  // namespace
}  // namespace nibble
