#include "rollout/reward/reward_protocol.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "core/base/line_buffer.h"
#include "rollout/reward/reward_spec.h"
#include "tests/rollout/reward/http_stub.h"

namespace nibble {
namespace {

/// What the worker writes when it is given `input`.
std::vector<std::string> run_worker(const std::string& type, const std::string& input) {
  int in[2], out[2];
  EXPECT_EQ(::pipe(in), 0);
  EXPECT_EQ(::pipe(out), 0);
  EXPECT_EQ(::write(in[1], input.data(), input.size()), static_cast<ssize_t>(input.size()));
  ::close(in[1]);
  EXPECT_EQ(run_reward_worker(type, in[0], out[1]), 0);
  ::close(in[0]);
  ::close(out[1]);
  LineBuffer lines(kMaxReplyBytes);
  char buffer[4096];
  std::vector<std::string> result;
  for (ssize_t count = 0; (count = ::read(out[0], buffer, sizeof buffer)) > 0;) {
    lines.append({buffer, static_cast<size_t>(count)});
    while (auto line = lines.next_line()) result.push_back(*line);
  }
  ::close(out[0]);
  return result;
}

TEST(RewardWorker, AnswersInOrderAndKeepsErrorsApartFromScores) {
  const auto lines = run_worker("last_number", R"({"id":1,"response":"is 4","label":4}
{"id":2,"response":"is 5","label":4}
{"id":9,"response":"is 5","label":"none"}
)");
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_NO_THROW(expect_ready(lines[0]));
  EXPECT_EQ(lines[1], R"({"id":1,"score":1.0})");
  EXPECT_EQ(lines[2], R"({"id":2,"score":0.0})");
  const RewardReply reply = decode_reply(lines[3]);
  EXPECT_EQ(reply.id, 9);
  EXPECT_EQ(std::get<Error>(reply.outcome).code(), ErrorCode::kInvalidArgument);
}

TEST(RewardWorker, ScoresTogetherWhatIsThereAlready) {
  HttpStub server([](const std::string& body, int) {
    const size_t count = Json::parse(body)["samples"].size();
    return answer_with(200, Json{{"rewards", std::vector<int>(count, 1)}}.dump());
  });
  RewardSpec spec;
  spec.parts = parse_reward_parts("remote=0.5,last_number");
  spec.url = server.url();
  spec.remote_timeout_ms = 20'000;
  std::string input;
  for (int i = 0; i < 40; ++i) input += encode_request(i, "is " + std::to_string(i % 2), 1);
  const auto lines = run_worker(reward_argument(spec), input);
  ASSERT_EQ(lines.size(), 41u);
  for (int i = 0; i < 40; ++i) {
    const RewardReply reply = decode_reply(lines[static_cast<size_t>(i) + 1]);
    EXPECT_EQ(reply.id, i);
    EXPECT_EQ(std::get<double>(reply.outcome), 0.5 + i % 2);
  }
  EXPECT_EQ(server.num_requests(), 2);
}

TEST(RewardWorker, RefusesAnUnknownTypeAndLinesThatAreNoRequests) {
  EXPECT_THROW(run_reward_worker("nothing", -1, -1), Error);
  for (const std::string line : {"x", "{}", "[1]", R"({"id":"1","response":"","label":1})",
                                 R"({"id":1,"label":1})", R"({"id":1,"response":"a"})"}) {
    EXPECT_THROW(decode_request(line), Error) << line;
  }
}

TEST(RewardProtocol, MessagesSurviveTheTrip) {
  const Json label = {{"answer", "7\n\"8\""}, {"n", {1, 2.5, nullptr}}};
  const RewardRequest request = decode_request(encode_request(12, "a\nb\t\xc3\x97", label));
  EXPECT_EQ(request.id, 12);
  EXPECT_EQ(request.response, "a\nb\t\xc3\x97");
  EXPECT_EQ(request.label, label);
  EXPECT_EQ(std::get<double>(decode_reply(encode_reply({3, 0.1})).outcome), 0.1);
  const auto error = std::get<Error>(
      decode_reply(encode_reply({3, Error(ErrorCode::kResourceExhausted, "full")})).outcome);
  EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
  EXPECT_STREQ(error.what(), "full");
}

TEST(RewardProtocol, InvalidUtf8IsReplacedNotRefused) {
  const RewardRequest request = decode_request(encode_request(1, "caf\xc3", "x"));
  EXPECT_EQ(request.response, "caf\xef\xbf\xbd");
}

TEST(RewardProtocol, RefusesRepliesThatAreNone) {
  for (const std::string line :
       {"", "1", "{}", R"({"id":1})", R"({"id":1,"score":"1"})", R"({"id":1,"score":1e999})",
        R"({"id":1,"score":null})", R"({"id":1,"code":"oops","error":"x"})",
        R"({"id":1.5,"score":1})"}) {
    EXPECT_THROW(decode_reply(line), Error) << line;
  }
}

TEST(LineBuffer, CutsLinesWhereverTheBytesWereCut) {
  LineBuffer lines(8);
  lines.append("ab");
  EXPECT_FALSE(lines.next_line());
  lines.append("c\n\nde\nf");
  EXPECT_EQ(lines.next_line(), "abc");
  EXPECT_EQ(lines.next_line(), "");
  EXPECT_EQ(lines.next_line(), "de");
  EXPECT_FALSE(lines.next_line());
  lines.append("12345678");
  EXPECT_THROW(lines.next_line(), Error);
  lines.clear();
  lines.append("123456789\n");
  EXPECT_THROW(lines.next_line(), Error);
}

}  // namespace
}  // namespace nibble
