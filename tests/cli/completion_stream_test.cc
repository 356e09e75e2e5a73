#include "cli/completion_stream.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace nibble {
namespace {

constexpr std::string_view kStream =
    ": a comment\n\n"
    "data: {\"choices\": [{\"index\": 0, \"text\": \"one \"}], \"usage\": null}\n\n"
    "data: {\"choices\": [{\"index\": 0, \"text\": \"two\", \"finish_reason\": "
    "\"length\"}]}\r\n\r\n"
    "data: {\"choices\": [], \"usage\": {\"completion_tokens\": 2}}\n\n"
    "data: [DONE]\n\n";

TEST(CompletionStream, ReadsTheSameHoweverItsBytesAreCut) {
  for (size_t piece = 1; piece <= kStream.size(); ++piece) {
    CompletionStream stream;
    int64_t parts = 0;
    for (size_t at = 0; at < kStream.size(); at += piece) {
      EXPECT_FALSE(stream.has_ended() && at + 2 < kStream.size());
      parts += stream.push(kStream.substr(at, piece));
    }
    EXPECT_EQ(parts, 2);
    EXPECT_EQ(stream.text(), "one two");
    EXPECT_EQ(stream.reason(), "length");
    EXPECT_EQ(stream.num_tokens(), 2);
    EXPECT_TRUE(stream.has_ended());
  }
}

TEST(CompletionStream, WithoutUsageItKnowsNoNumberOfTokens) {
  CompletionStream stream;
  EXPECT_EQ(stream.push("data: {\"choices\": [{\"text\": \"a\"}]}\n"), 1);
  EXPECT_EQ(stream.num_tokens(), -1);
  EXPECT_FALSE(stream.has_ended());
}

TEST(CompletionStream, AnErrorOfTheServerIsPassedOn) {
  CompletionStream stream;
  try {
    stream.push("data: {\"error\": {\"message\": \"the engine failed\"}}\n");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    EXPECT_STREQ(error.what(), "the engine failed");
  }
}

TEST(CompletionStream, WhatIsNoStreamIsRefused) {
  for (const std::string_view bytes :
       {"<html>\n", "event: x\n", "data: {\"choices\": 3}\n", "data: {}\n", "data: []\n",
        "data: {\"choices\": [{}]}\n", "data: nonsense\n",
        "data: {\"choices\": [], \"usage\": {\"completion_tokens\": \"2\"}}\n"}) {
    CompletionStream stream;
    EXPECT_THROW(stream.push(bytes), Error) << bytes;
  }
  CompletionStream endless;
  EXPECT_THROW(endless.push(std::string((1 << 20) + 1, 'x')), Error);
}

}  // namespace
}  // namespace nibble
