#include <gtest/gtest.h>

#include <random>

#include "core/base/error.h"
#include "core/tokenizer/bpe.h"
#include "core/tokenizer/byte_alphabet.h"
#include "core/tokenizer/nfc.h"
#include "core/tokenizer/split_regex.h"
#include "core/tokenizer/utf8.h"

namespace nibble {
namespace {

TEST(Utf8, ReplacesEveryMaximalIllFormedPart) {
  // Unicode 15, table 3-11 and its neighbours.
  const auto lossy = [](std::string_view text) {
    std::string out;
    if (append_lossy_utf8(out, text) < text.size()) out += "|";
    return out;
  };
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(lossy("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
  EXPECT_EQ(lossy("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(lossy("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(lossy("a\xF0\x9F\x98"), "a|");
  EXPECT_EQ(lossy(std::string_view("\0\x7F", 2)), std::string_view("\0\x7F", 2));
}

TEST(Utf8, WritesWhatItReads) {
  for (const char32_t c :
       {0x0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF}) {
    std::string text;
    append_utf8(text, c);
    const Utf8Step step = utf8_step(text, 0);
    EXPECT_TRUE(step.valid);
    EXPECT_EQ(step.code_point, c);
    EXPECT_EQ(static_cast<size_t>(step.bytes), text.size());
  }
}

TEST(ByteAlphabet, SpellsEveryByteWithItsOwnCharacter) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string character = alphabet_of_byte(static_cast<uint8_t>(byte));
    EXPECT_EQ(bytes_of_alphabet(character), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(alphabet_of_byte(' '), "\xC4\xA0");
  EXPECT_EQ(bytes_of_alphabet(" "), std::nullopt);
  EXPECT_EQ(bytes_of_alphabet("\xEF\xBD\x9C"), std::nullopt);
}

TEST(Nfc, ComposesAndOrdersMarks) {
  EXPECT_EQ(to_nfc("e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(to_nfc("q\xCC\x87\xCC\xA3"), "q\xCC\xA3\xCC\x87");  // dot below goes first
  EXPECT_EQ(to_nfc("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"), "\xED\x95\x9C");  // Hangul
  EXPECT_EQ(to_nfc("\xE2\x84\xAB"), "\xC3\x85");                              // Angstrom sign
  EXPECT_EQ(to_nfc(std::string_view("a\0b\xCC\x81", 5)), std::string_view("a\0b\xCC\x81", 5));
  EXPECT_EQ(to_nfc("plain"), "plain");
}

std::vector<std::string_view> split(const SplitRegex& regex, std::string_view text) {
  std::vector<std::string_view> pieces;
  regex.split(text, pieces);
  return pieces;
}

TEST(SplitRegex, KeepsMatchesAndGapsInOrder) {
  using Pieces = std::vector<std::string_view>;
  EXPECT_EQ(split(SplitRegex("b+", "t"), "abbcb"), (Pieces{"a", "bb", "c", "b"}));
  EXPECT_EQ(split(SplitRegex("b*", "t"), "abbc"), (Pieces{"a", "bb", "c"}));
  EXPECT_EQ(split(SplitRegex("x", "t"), ""), Pieces{});
  EXPECT_EQ(split(SplitRegex("(?=c)", "t"), "abc"), (Pieces{"ab", "c"}));
}

TEST(SplitRegex, GivesWhiteSpaceItsUnicodeMeaning) {
  // U+180E is not White_Space; U+0085 and U+3000 are.
  EXPECT_EQ(split(SplitRegex("\\s", "t"),
                  "a\xE1\xA0\x8E"
                  "b")
                .size(),
            1u);
  EXPECT_EQ(split(SplitRegex("\\s", "t"), "a\xC2\x85\xE3\x80\x80").size(), 3u);
  EXPECT_EQ(split(SplitRegex("\\S+", "t"), "ab c").size(), 3u);
  EXPECT_EQ(split(SplitRegex("[^\\sb]+", "t"), "aab c").size(), 3u);
}

TEST(SplitRegex, RefusesConstructsThatMeanSomethingElseInPcre) {
  for (const char* pattern :
       {"\\h", "\\w", "\\b", "^a", "a$", "a.b", "[[:alpha:]]", "[a&&b]", "(?<n>a)", "(?R)", "(?C1)",
        "(*UTF)a", "a{1,2}+", "\\1", "\\pL", "(?x)a", "[\\S]"}) {
    try {
      SplitRegex(pattern, "field");
      ADD_FAILURE() << pattern;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnimplemented) << pattern;
    }
  }
  for (const char* pattern : {"(a", "[a", "a)", "*", "\\p{Nonsense}"}) {
    try {
      SplitRegex(pattern, "field");
      ADD_FAILURE() << pattern;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << pattern;
    }
  }
}

TEST(SplitRegex, GivesUpOnExponentialPatterns) {
  const SplitRegex regex("(?:a+)+[xy]", "field");
  std::vector<std::string_view> pieces;
  EXPECT_THROW(regex.split(std::string(60, 'a') + "c", pieces), Error);
}

// The definition: as long as some pair merges, merge the leftmost pair of the lowest rank.
std::vector<int32_t> merge_by_definition(std::string piece, const BpeModel& model) {
  std::vector<std::string> parts;
  for (const char c : piece) parts.emplace_back(1, c);
  while (true) {
    size_t best_rank = model.merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (model.merges[rank] != std::pair(parts[i], parts[i + 1])) continue;
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == model.merges.size()) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& part : parts) {
    for (const auto& [token, id] : model.tokens) {
      if (token == part) ids.push_back(id);
    }
  }
  return ids;
}

TEST(Bpe, MergesShortAndLongPiecesAsDefined) {
  BpeModel model;
  for (const char* token :
       {"a", "b", "c", "ab", "bc", "aa", "abc", "aab", "aaaa", "bcab", "abab"}) {
    model.tokens.emplace_back(token, static_cast<int32_t>(model.tokens.size()));
  }
  model.merges = {{"b", "c"},  {"a", "a"},  {"a", "b"},   {"ab", "ab"},
                  {"aa", "b"}, {"a", "bc"}, {"aa", "aa"}, {"bc", "ab"}};
  const Bpe bpe(model);
  std::mt19937 random(7);
  for (int round = 0; round < 400; ++round) {
    std::string piece;
    const size_t length = 1 + random() % 120;
    for (size_t i = 0; i < length; ++i) piece += "aabbc"[random() % 5];
    std::vector<int32_t> ids;
    bpe.encode(piece, ids);
    EXPECT_EQ(ids, merge_by_definition(piece, model)) << piece;
  }
}

TEST(Bpe, IgnoresMergesOnlyWhenTold) {
  BpeModel model{{{"a", 0}, {"b", 1}, {"ab", 2}}, {}, false};
  std::vector<int32_t> ids;
  Bpe(model).encode("ab", ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{0, 1}));
  model.ignore_merges = true;
  ids.clear();
  Bpe(model).encode("ab", ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{2}));
}

}  // namespace
}  // namespace nibble
