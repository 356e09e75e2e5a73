#include "core/config/yaml_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/config/nearest.h"

namespace nibble {
namespace {

std::string refusal(std::string_view text) {
  try {
    parse_yaml(text, "f.yaml");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(ParseYaml, KeepsOrderLinesAndQuotes) {
  const YamlNode root = parse_yaml("b: 1\na:\n  - 'x'\n  - null\n", "f.yaml");
  ASSERT_EQ(root.map.size(), 2u);
  EXPECT_EQ(root.map[0].key, "b");
  EXPECT_FALSE(root.map[0].value.is_quoted);
  EXPECT_EQ(root.map[1].line, 2);
  EXPECT_TRUE(root.map[1].value.list[0].is_quoted);
  EXPECT_EQ(root.map[1].value.list[0].line, 3);
  EXPECT_EQ(root.map[1].value.list[1].kind, YamlNode::Kind::kNull);
}

TEST(ParseYaml, RefusesAnchorsAliasesAndTags) {
  EXPECT_EQ(refusal("a: 1\nb: &x 2\n"), "f.yaml:2: a YAML anchor (&name); write the value out");
  EXPECT_THAT(refusal("a: &x [1]\nb: *x\n"), ::testing::HasSubstr("f.yaml:1: a YAML anchor"));
  EXPECT_EQ(refusal("a: !!int 3\n"), "f.yaml:1: a YAML tag (!name); remove it");
  EXPECT_EQ(refusal("a: !exec {x: 1}\n"), "f.yaml:1: a YAML tag (!name); remove it");
}

TEST(ParseYaml, RefusesWhatIsNotOneBoundedDocument) {
  EXPECT_THAT(refusal("a: 1\n---\nb: 2\n"), ::testing::HasSubstr("second YAML document"));
  EXPECT_THAT(refusal(std::string(40, '[') + std::string(40, ']')),
              ::testing::HasSubstr("nested deeper than 32 levels"));
  EXPECT_NE(refusal(std::string(1 << 20, '[')), "accepted");
  EXPECT_NE(refusal(std::string(1 << 19, '{')), "accepted");
  EXPECT_THAT(refusal(std::string((1 << 20) + 1, ' ')), ::testing::HasSubstr("at most 1048576"));
  std::string many = "[";
  for (int i = 0; i < 70000; ++i) many += "1,";
  EXPECT_THAT(refusal(many + "1]"), ::testing::HasSubstr("more values"));
  EXPECT_THAT(refusal(std::string_view("a: \0b", 5)), ::testing::HasSubstr("control character"));
}

TEST(ParseYaml, RefusesBadSyntaxWithItsLine) {
  EXPECT_THAT(refusal("a: 1\nb: [1, 2\nc: 3\n"), ::testing::StartsWith("f.yaml:3: not valid YAML"));
  EXPECT_THAT(refusal("a: 'x\n"), ::testing::HasSubstr("not valid YAML"));
  EXPECT_THAT(refusal("? [a]\n: 1\n"), ::testing::HasSubstr("a map key must be plain text"));
}

TEST(ParseYaml, EveryTruncationAndByteFlipIsRefusedOrParsed) {
  const std::string text =
      "# run\nname: \"x\\u00e9\"\nlist: [1, 2.5, {a: b}]\nmap:\n  - k: |\n      block\n  - >\n"
      "    folded\n";
  for (size_t size = 0; size < text.size(); ++size) refusal(text.substr(0, size));
  for (size_t at = 0; at < text.size(); ++at) {
    for (const char byte : {'\xff', '\x04', '{', ']', ':', '*', '&', '%', '\t', '\n', '"', '|'}) {
      std::string flipped = text;
      flipped[at] = byte;
      refusal(flipped);
    }
  }
}

TEST(NearestWord, FindsSlipsAndIgnoresStrangers) {
  const std::vector<std::string> keys = {"bucket_bytes", "max_staleness", "lr"};
  EXPECT_EQ(nearest_word("bucket_byte", keys), "bucket_bytes");
  EXPECT_EQ(nearest_word("max_stalenses", keys), "max_staleness");
  EXPECT_EQ(nearest_word("lx", keys), "lr");
  EXPECT_EQ(nearest_word("zz", keys), "");
  EXPECT_EQ(nearest_word("temperature", keys), "");
}

}  // namespace
}  // namespace nibble
