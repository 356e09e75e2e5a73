#include "core/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <array>

#include "core/base/error.h"
#include "core/base/json.h"

namespace nibble {
namespace {

enum class Reference { kAuto, kAlways, kNever };
constexpr std::array<EnumName<Reference>, 3> enum_names(Reference) {
  return {
      {{Reference::kAuto, "auto"}, {Reference::kAlways, "always"}, {Reference::kNever, "never"}}};
}

struct Sampling {
  double temperature = 1.0;
  double top_p = 1.0;
};
template <typename Visitor>
void visit_fields(Visitor& v, Sampling& c) {
  v.field("temperature", c.temperature, "", "softmax temperature", Above{0});
  v.field("top_p", c.top_p, "", "nucleus mass", Range{0, 1});
}

struct Source {
  std::filesystem::path path;
  double weight = 1.0;
};
template <typename Visitor>
void visit_fields(Visitor& v, Source& c) {
  v.field("path", c.path, "", "JSONL file");
  v.field("weight", c.weight, "", "share of the prompts", AtLeast{0});
}

struct Train {
  std::string name = "run";
  Reference reference = Reference::kAuto;
  int64_t bucket_bytes = 512 << 20;
  int group = 32;
  bool resume = false;
  std::optional<int64_t> seed;
  std::vector<double> betas = {0.9, 0.95};
  std::vector<std::string> tags;
  Sampling sampling;
  std::vector<Source> sources;
};
template <typename Visitor>
void visit_fields(Visitor& v, Train& c) {
  v.field("name", c.name, "", "shown in the dashboard");
  v.field("reference", c.reference, "", "when the reference model runs");
  v.field("bucket_bytes", c.bucket_bytes, "bytes", "one transfer", AtLeast{1});
  v.field("group", c.group, "", "weights per scale", OneOf{32, 64, 128});
  v.field("resume", c.resume, "", "go on from the last checkpoint");
  v.field("seed", c.seed, "", "fixed seed");
  v.field("betas", c.betas, "", "decay of the moments", Range{0, 1});
  v.field("tags", c.tags, "", "free labels");
  v.section("sampling", c.sampling, "how the next token is drawn");
  v.section("sources", c.sources, "prompt files");
}

Train parse(std::string_view text, const std::vector<std::string>& overrides = {}) {
  return parse_config<Train>(text, "train.yaml", overrides).config;
}

std::string refusal(std::string_view text, const std::vector<std::string>& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(ParseConfig, ReadsEveryKindOfField) {
  const Train train = parse(R"(
name: 'a "b"'
reference: never
bucket_bytes: 268435456
group: 64
resume: true
seed: -7
betas: [0.5, 1e-3]
tags: [x, "12"]
sampling: {temperature: 0.7}
sources:
  - path: /data/a.jsonl
    weight: 2
  - {path: b}
)");
  EXPECT_EQ(train.name, "a \"b\"");
  EXPECT_EQ(train.reference, Reference::kNever);
  EXPECT_EQ(train.bucket_bytes, 268435456);
  EXPECT_EQ(train.group, 64);
  EXPECT_TRUE(train.resume);
  EXPECT_EQ(train.seed, -7);
  EXPECT_THAT(train.betas, ::testing::ElementsAre(0.5, 1e-3));
  EXPECT_THAT(train.tags, ::testing::ElementsAre("x", "12"));
  EXPECT_EQ(train.sampling.temperature, 0.7);
  EXPECT_EQ(train.sampling.top_p, 1.0);
  ASSERT_EQ(train.sources.size(), 2u);
  EXPECT_EQ(train.sources[0].path, "/data/a.jsonl");
  EXPECT_EQ(train.sources[0].weight, 2.0);
  EXPECT_EQ(train.sources[1].weight, 1.0);
}

TEST(ParseConfig, EmptyFileAndEmptySectionKeepDefaults) {
  EXPECT_EQ(parse("").bucket_bytes, 512 << 20);
  EXPECT_EQ(parse("# nothing\n").betas.size(), 2u);
  EXPECT_EQ(parse("sampling:\n  # top_p: 0.5\n").sampling.top_p, 1.0);
}

TEST(ParseConfig, UnknownKeyIsNamedWithPlaceAndNearestKey) {
  EXPECT_EQ(refusal("name: x\nbucket_byte: 1\n"),
            "train.yaml:2: bucket_byte: unknown key; did you mean 'bucket_bytes'?");
  EXPECT_EQ(refusal("sampling:\n  top_k: 1\n"),
            "train.yaml:2: sampling.top_k: unknown key; did you mean 'sampling.top_p'?");
  EXPECT_EQ(refusal("sources:\n- {path: a}\n- {paht: b}\n"),
            "train.yaml:3: sources.1.paht: unknown key; did you mean 'sources.1.path'?");
}

TEST(ParseConfig, KeyOfAnotherSectionIsPointedTo) {
  EXPECT_EQ(refusal("temperature: 1\n"),
            "train.yaml:1: temperature: unknown key; did you mean 'sampling.temperature'?");
  EXPECT_EQ(refusal("sampling: {quite_different: 1}\n"),
            "train.yaml:1: sampling.quite_different: unknown key; known here: temperature, top_p");
}

TEST(ParseConfig, DuplicateKeyIsRefused) {
  EXPECT_EQ(refusal("sampling:\n  top_p: 1\n  top_p: 0.5\n"),
            "train.yaml:3: sampling.top_p: duplicate key; keep one of them");
}

TEST(ParseConfig, WrongTypesAreRefusedWithWhatWasWanted) {
  EXPECT_EQ(refusal("bucket_bytes: 12MB\n"),
            "train.yaml:1: bucket_bytes: want an integer, got '12MB' (in bytes)");
  EXPECT_EQ(refusal("bucket_bytes: 1.5\n"),
            "train.yaml:1: bucket_bytes: want an integer, got '1.5' (in bytes)");
  EXPECT_EQ(refusal("bucket_bytes: \"12\"\n"),
            "train.yaml:1: bucket_bytes: want an integer, got the text \"12\" (in bytes)");
  EXPECT_EQ(refusal("group: 4294967328\n"),
            "train.yaml:1: group: want an integer below 2^31, got '4294967328'");
  EXPECT_EQ(refusal("resume: yes\n"), "train.yaml:1: resume: want true or false, got 'yes'");
  EXPECT_EQ(refusal("sampling: 3\n"),
            "train.yaml:1: sampling: want a map of keys, got a single value");
  EXPECT_EQ(refusal("name: [a]\n"), "train.yaml:1: name: want text, got a list");
  EXPECT_EQ(refusal("name:\n"),
            "train.yaml:1: name: want text, got nothing; write \"\" for no text");
  EXPECT_EQ(refusal("betas: 0.9\n"), "train.yaml:1: betas: want a list, as in [a, b]");
  EXPECT_EQ(refusal("sampling: {top_p: .nan}\n"),
            "train.yaml:1: sampling.top_p: want a finite number, got '.nan'");
  EXPECT_EQ(refusal("reference: alway\n"),
            "train.yaml:1: reference: want one of auto, always, never, got 'alway'; "
            "did you mean 'always'?");
  EXPECT_EQ(refusal("[1, 2]\n"), "train.yaml:1: want a map of keys, got a list");
}

TEST(ParseConfig, ValuesOutsideTheirLimitsAreRefused) {
  EXPECT_EQ(refusal("sampling: {top_p: 1.5}\n"),
            "train.yaml:1: sampling.top_p: 1.5 is out of range; it must be between 0 and 1");
  EXPECT_EQ(refusal("sampling: {temperature: 0}\n"),
            "train.yaml:1: sampling.temperature: 0 is out of range; it must be above 0");
  EXPECT_EQ(refusal("group: 48\n"),
            "train.yaml:1: group: 48 is out of range; it must be one of 32, 64, 128");
  EXPECT_EQ(refusal("betas:\n- 0.9\n- 2\n"),
            "train.yaml:3: betas.1: 2 is out of range; it must be between 0 and 1");
}

TEST(Overrides, ApplyInOrderOverTheFile) {
  const Train train = parse("sampling: {top_p: 0.5}\nsources: [{path: a}]\nseed: 1\n",
                            {"sampling.top_p=0.6", "sampling.top_p=0.7", "tags=[a, b]",
                             "sources.0.weight=3", "seed=null", "name=x=y"});
  EXPECT_EQ(train.sampling.top_p, 0.7);
  EXPECT_THAT(train.tags, ::testing::ElementsAre("a", "b"));
  EXPECT_EQ(train.sources[0].path, "a");
  EXPECT_EQ(train.sources[0].weight, 3.0);
  EXPECT_FALSE(train.seed.has_value());
  EXPECT_EQ(train.name, "x=y");
}

TEST(Overrides, AreCheckedLikeTheFile) {
  EXPECT_EQ(refusal("", {"sampling.topp=1"}),
            "--set sampling.topp=1: sampling.topp: unknown key; did you mean 'sampling.top_p'?");
  EXPECT_EQ(
      refusal("", {"sampling.top_p=2"}),
      "--set sampling.top_p=2: sampling.top_p: 2 is out of range; it must be between 0 and 1");
  EXPECT_EQ(refusal("", {"name.x=2"}),
            "--set name.x=2: name: this key holds a value, not a section");
  EXPECT_EQ(refusal("", {"resume"}), "--set resume: want KEY=VALUE, as in rollout.top_p=0.9");
  EXPECT_EQ(refusal("", {"sources.0.weight=1"}),
            "--set sources.0.weight=1: sources: '0' picks none of its 0 elements; count from 0");
}

TEST(ConfigSource, SaysWhereAValueWasWritten) {
  const std::vector<std::string> overrides = {"group=64"};
  const auto loaded =
      parse_config<Train>("name: x\nsampling:\n  top_p: 0.5\n", "train.yaml", overrides);
  EXPECT_EQ(loaded.source.where("sampling.top_p"), "train.yaml:3");
  EXPECT_EQ(loaded.source.where("group"), "--set group=64");
  EXPECT_EQ(loaded.source.where("seed"), "default");
  EXPECT_FALSE(loaded.source.is_set("seed"));
}

TEST(DumpConfig, AnotherYamlReaderSeesTheSameValues) {
  Train train;
  train.name = "yes";
  train.sampling.top_p = 0.1;
  train.tags = {"12", "a: b", "tab\t\"q\" \\ # é", "null", "-1", ""};
  train.sources = {{"a b", 0.25}, {"c", 1e-9}};
  const YAML::Node node = YAML::Load(dump_config(train));
  EXPECT_EQ(node["name"].as<std::string>(), "yes");
  EXPECT_EQ(node["sampling"]["top_p"].as<double>(), 0.1);
  EXPECT_EQ(node["tags"].as<std::vector<std::string>>(), train.tags);
  EXPECT_EQ(node["sources"][1]["weight"].as<double>(), 1e-9);
  EXPECT_TRUE(node["seed"].IsNull());
}

TEST(DumpConfig, ReadsBackToTheSameDump) {
  Train train;
  train.tags = {"1e5", "true", "0x1f", ".5", "é", "line\nbreak"};
  train.seed = 3;
  train.betas = {1.0 / 3, 1};
  train.sources.resize(2);
  const std::string dump = dump_config(train);
  const Train again = parse(dump);
  EXPECT_EQ(again.tags, train.tags);
  EXPECT_EQ(again.betas, train.betas);
  EXPECT_EQ(dump_config(again), dump);
}

TEST(DumpConfig, CommentsCarryUnitLimitsHelpAndChangedDefault) {
  Train train;
  train.sampling.top_p = 0.5;
  const std::string dump = dump_config(train);
  EXPECT_THAT(
      dump, ::testing::HasSubstr("bucket_bytes: 536870912  # one transfer (bytes; at least 1)\n"));
  EXPECT_THAT(dump, ::testing::HasSubstr("sampling:  # how the next token is drawn\n"));
  EXPECT_THAT(
      dump, ::testing::HasSubstr("  top_p: 0.5  # nucleus mass (between 0 and 1; default 1.0)\n"));
}

TEST(ConfigReference, HasOneTablePerSectionWithEveryKey) {
  const std::string page = config_reference<Train>();
  EXPECT_THAT(page, ::testing::HasSubstr(
                        "| `bucket_bytes` | integer, at least 1 | `536870912` | bytes | one "
                        "transfer |\n"));
  EXPECT_THAT(page, ::testing::HasSubstr("| `reference` | auto \\| always \\| never | `auto` |"));
  EXPECT_THAT(page, ::testing::HasSubstr("| `seed` | integer | `none` |"));
  EXPECT_THAT(page, ::testing::HasSubstr("## `sampling`\n"));
  EXPECT_THAT(page, ::testing::HasSubstr("## `sources` (list)\n"));
  EXPECT_THAT(page, ::testing::HasSubstr("| `weight` | number, at least 0 | `1.0` |"));
}

TEST(ConfigJsonSchema, SaysWhatTheReaderAccepts) {
  const Json schema = parse_json(config_json_schema<Train>("Nibble"), "schema");
  const Json& keys = schema["properties"];
  EXPECT_EQ(schema["additionalProperties"], false);
  EXPECT_EQ(keys["reference"]["enum"], Json({"auto", "always", "never"}));
  EXPECT_EQ(keys["bucket_bytes"]["default"], 512 << 20);
  EXPECT_EQ(keys["sampling"]["properties"]["temperature"]["exclusiveMinimum"], 0.0);
  EXPECT_EQ(keys["sources"]["items"]["properties"]["weight"]["type"], "number");
  EXPECT_EQ(keys["seed"]["anyOf"][1]["type"], "null");
  EXPECT_EQ(keys["betas"]["default"], Json({0.9, 0.95}));
}

struct DeclaredTwice {
  int a = 0;
};
template <typename Visitor>
void visit_fields(Visitor& v, DeclaredTwice& c) {
  v.field("a", c.a, "", "first");
  v.field("a", c.a, "", "second");
}

TEST(FieldCollector, AKeyDeclaredTwiceIsOurBug) {
  try {
    parse_config<DeclaredTwice>("", "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
  }
}

TEST(ChangedKeys, AreThoseWhoseValuesAreNotTheDefaults) {
  EXPECT_TRUE(changed_keys(Train{}).empty());
  EXPECT_TRUE(changed_keys(parse("group: 32\nsampling: {top_p: 1.0}\n")).empty())
      << "a default that is written out changes nothing";
  EXPECT_THAT(changed_keys(parse("seed: 3\nbetas: [0.9]\nsampling: {top_p: 0.5}\n"
                                 "sources: [{path: a}]\n")),
              ::testing::ElementsAre("seed", "betas", "sampling.top_p", "sources"));
}

TEST(ChangedValues, SayWhatWasAndWhatIs) {
  const Train before = parse("seed: 3\nsources: [{path: a}]\n");
  EXPECT_TRUE(changed_values(before, before).empty());
  std::vector<std::string> said;
  for (const ChangedValue& value :
       changed_values(parse("seed: 4\nsampling: {top_p: 0.5}\nsources: [{path: b}]\n"), before)) {
    said.push_back(value.key + ": " + value.before + " -> " + value.after);
  }
  ASSERT_EQ(said.size(), 3u);
  EXPECT_EQ(said[0], "seed: 3 -> 4");
  EXPECT_EQ(said[1], "sampling.top_p: 1.0 -> 0.5");
  EXPECT_EQ(said[2], "sources: [{path: a, weight: 1.0}] -> [{path: b, weight: 1.0}]");
}

}  // namespace
}  // namespace nibble
