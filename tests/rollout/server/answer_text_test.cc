#include "rollout/server/answer_text.h"

#include <gtest/gtest.h>

#include <random>

#include "core/tokenizer/utf8.h"
#include "tests/rollout/server/served_fixture.h"

namespace nibble {
namespace {

class AnswerTextTest : public ::testing::Test {
 protected:
  const Tokenizer& tokenizer() const { return *served_.model.tokenizer; }
  ServedFixture served_;
  std::mt19937 random_{3};
};

// The text before the stop string that is the first to end, of those that end together the longest.
std::string cut(const std::string& text, const std::vector<std::string>& stop) {
  size_t begin = std::string::npos;
  size_t end = std::string::npos;
  for (const std::string& one : stop) {
    const size_t at = text.find(one);
    if (at == std::string::npos) continue;
    if (at + one.size() > end || (at + one.size() == end && at > begin)) continue;
    begin = at;
    end = at + one.size();
  }
  return text.substr(0, begin);
}

TEST_F(AnswerTextTest, PiecesAreWholeCharactersAndJoinToTheTextBeforeTheStopString) {
  int num_cut = 0;
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int32_t> ids(40);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % 512);
    const DecodeOptions options{.skip_special = trial % 2 == 0};
    const std::string whole = tokenizer().decode(ids, options);
    std::vector<std::string> stop;
    for (int i = 0; i < trial % 3; ++i) {
      // From the text itself, cut where characters begin, so that some are found.
      size_t begin = random_() % whole.size();
      size_t end = std::min(whole.size(), begin + 1 + random_() % 6);
      const auto inside = [&](size_t at) {
        return at < whole.size() && (whole[at] & 0xC0) == 0x80;
      };
      while (inside(begin)) --begin;
      while (inside(end)) ++end;
      stop.push_back(whole.substr(begin, end - begin));
    }
    AnswerText text(tokenizer(), stop, options);
    AnswerStop engine_side(tokenizer(), stop, options);
    std::string joined;
    bool has_ended = false;
    for (const int32_t id : ids) {
      const std::string piece = text.push(id);
      EXPECT_EQ(find_invalid_utf8(piece), std::string::npos);
      joined += piece;
      has_ended = engine_side.ends_at(id);
      if (has_ended) break;
    }
    joined += text.finish();
    const std::string want = cut(whole, stop);
    // What only the end of the stream decides (U+FFFD of a broken character) is not searched.
    if (!has_ended && want != whole) continue;
    EXPECT_EQ(joined, want);
    num_cut += static_cast<int>(has_ended);
  }
  EXPECT_GT(num_cut, 100);
}

TEST_F(AnswerTextTest, WhatMayBecomeAStopStringIsHeldBack) {
  const auto id = [this](const char* token) { return tokenizer().token_to_id(token); };
  AnswerText text(tokenizer(), {"ab*"}, {});
  EXPECT_EQ(text.push(id("a")), "");
  EXPECT_EQ(text.push(id("b")), "");
  EXPECT_EQ(text.push(id("c")), "abc");
  EXPECT_EQ(text.push(id("ab")), "");
  EXPECT_EQ(text.finish(), "ab");
}

TEST_F(AnswerTextTest, CharactersAreCounted) {
  EXPECT_EQ(count_characters(""), 0);
  EXPECT_EQ(count_characters("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), 4);
}

}  // namespace
}  // namespace nibble
