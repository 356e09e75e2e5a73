#include "rollout/engine/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

#include "core/base/error.h"

namespace nibble {
namespace {

TEST(StopStrings, FindsAStringThatPiecesCut) {
  StopStrings stop({"</answer>"});
  EXPECT_FALSE(stop.push("is 4</ans"));
  EXPECT_EQ(stop.pending_bytes(), 5);
  const auto match = stop.push("wer>\n");
  ASSERT_TRUE(match);
  EXPECT_EQ(match->begin_byte, 4);
  EXPECT_EQ(match->end_byte, 13);
  EXPECT_EQ(stop.push("</answer>")->end_byte, 13) << "the first match stays";
}

TEST(StopStrings, OfStringsThatEndTogetherTheLongestIsReported) {
  StopStrings stop({"b", "aab", "ab"});
  EXPECT_EQ(stop.push("xaab")->string, 1u);
}

TEST(StopStrings, RefusesEmptyTooLongAndTooMany) {
  EXPECT_THROW(StopStrings({""}), Error);
  EXPECT_THROW(StopStrings({std::string(StopStrings::kMaxBytes + 1, 'a')}), Error);
  EXPECT_THROW(StopStrings(std::vector<std::string>(StopStrings::kMaxStrings + 1, "a")), Error);
  EXPECT_FALSE(StopStrings({}).push("anything"));
}

// Against std::string::find, on random texts over two letters, cut at random.
TEST(StopStrings, AgreesWithASearchOfTheWholeText) {
  std::mt19937 random(5);
  const auto word = [&](size_t length) {
    std::string out;
    for (size_t i = 0; i < length; ++i) out += static_cast<char>('a' + random() % 2);
    return out;
  };
  int found = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    const std::string text = word(1 + random() % 40);
    std::vector<std::string> strings;
    for (size_t i = 0; i < 1 + random() % 3; ++i) strings.push_back(word(1 + random() % 8));
    size_t first_end = std::string::npos;
    for (const std::string& s : strings) {
      const size_t at = text.find(s);
      if (at != std::string::npos) first_end = std::min(first_end, at + s.size());
    }
    StopStrings stop(strings);
    std::optional<StopStrings::Match> match;
    for (size_t begin = 0; begin < text.size();) {
      const size_t size = random() % 4;
      match = stop.push(text.substr(begin, size));
      begin += size;
    }
    ASSERT_EQ(match.has_value(), first_end != std::string::npos) << text;
    if (!match) {
      // Nothing that could still become a match is let through.
      for (const std::string& s : strings) {
        for (size_t n = static_cast<size_t>(stop.pending_bytes()) + 1; n < s.size(); ++n) {
          EXPECT_FALSE(text.ends_with(s.substr(0, n)));
        }
      }
      continue;
    }
    ++found;
    EXPECT_EQ(match->end_byte, static_cast<int64_t>(first_end));
    const auto& s = strings[match->string];
    EXPECT_EQ(text.substr(static_cast<size_t>(match->begin_byte), s.size()), s);
  }
  EXPECT_GT(found, 500);
}

}  // namespace
}  // namespace nibble
