#include "rollout/reward/weighted_scorer.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "core/base/error.h"
#include "rollout/reward/reward_spec.h"

namespace nibble {
namespace {

RewardSpec spec_of(const std::string& parts, const std::string& url = "") {
  RewardSpec spec;
  spec.parts = parse_reward_parts(parts);
  spec.url = url;
  return spec;
}

TEST(RewardParts, AreReadFromOneTypeOrSeveralWithWeights) {
  using Parts = std::vector<RewardPart>;
  EXPECT_EQ(parse_reward_parts("math"), (Parts{{"math", 1}}));
  EXPECT_EQ(parse_reward_parts(" math = 2 , f1=-0.5,exact"),
            (Parts{{"math", 2}, {"f1", -0.5}, {"exact", 1}}));
  for (const std::string text : {"math", "math=2", "math=1,f1=0.1"}) {
    EXPECT_EQ(reward_parts_text(parse_reward_parts(text)), text);
  }
  for (const char* text : {"", ",", "math,", "=1", "math=", "math=x", "math=1x", "math=nan",
                           "math=inf", "math=1e999", "math=1=2"}) {
    EXPECT_THROW(parse_reward_parts(text), Error) << text;
  }
}

TEST(RewardArgument, SurvivesTheTrip) {
  RewardSpec spec = spec_of("math=0.1,remote=3", "http://host:80/a?b=\"c\"");
  spec.remote_timeout_ms = 77;
  spec.remote_attempts = 2;
  EXPECT_EQ(parse_reward_argument(reward_argument(spec)), spec);
  EXPECT_EQ(parse_reward_argument("math=2").parts, (std::vector<RewardPart>{{"math", 2}}));
  for (const char* text : {"{", "{}", R"({"parts":1,"url":"","remote_timeout_ms":1})"}) {
    EXPECT_THROW(parse_reward_argument(text), Error) << text;
  }
}

TEST(WeightedScorer, AddsWeightTimesScore) {
  const auto scorer = make_scorer(spec_of("exact=0.25,last_number=2,f1=-1"));
  EXPECT_EQ(scorer->score("4", "4"), 0.25 + 2 - 1);
  EXPECT_EQ(scorer->score("5, 4", "4"), 2 - 2.0 / 3);
  EXPECT_EQ(scorer->score("5", "4"), 0);
  EXPECT_EQ(make_scorer(spec_of("exact=3"))->score("a", "a"), 3);
  EXPECT_EQ(make_scorer(spec_of("exact"))->score("a", "a"), 1);
}

TEST(WeightedScorer, APartThatCannotScoreLeavesNoScore) {
  const auto scorer = make_scorer(spec_of("exact,last_number=0"));
  const Json number = "4";
  const Json word = "four";
  const std::vector<ScoredText> samples = {{"4", &number}, {"four", &word}, {"5", &number}};
  const auto outcomes = scorer->score_all(samples);
  EXPECT_EQ(std::get<double>(outcomes[0]), 1);
  ASSERT_TRUE(std::holds_alternative<Error>(outcomes[1])) << "its label holds no number";
  EXPECT_EQ(std::get<Error>(outcomes[1]).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(std::get<double>(outcomes[2]), 0);
  EXPECT_THROW(scorer->score("four", word), Error);
}

/// Scores 1e308.
class LargeScorer final : public Scorer {
 public:
  double score(std::string_view, const Json&) const override {
    return std::numeric_limits<double>::max();
  }
};

TEST(WeightedScorer, ASumBeyondDoubleIsNoScore) {
  std::vector<WeightedScorer::Part> parts;
  parts.push_back({std::make_unique<LargeScorer>(), 2});
  const WeightedScorer scorer(std::move(parts));
  const Json label = 1;
  const ScoredText sample{"a", &label};
  EXPECT_TRUE(std::holds_alternative<Error>(scorer.score_all({&sample, 1})[0]));
  EXPECT_THROW(scorer.score("a", label), Error);
}

TEST(MakeScorer, RefusesPartsThatMakeNoSense) {
  EXPECT_THROW(make_scorer(RewardSpec{}), Error);
  EXPECT_THROW(make_scorer(spec_of("math,math=2")), Error);
  EXPECT_THROW(make_scorer(spec_of("math,nothing")), Error);
  EXPECT_THROW(make_scorer(spec_of("remote")), Error) << "without a URL";
  EXPECT_THROW(make_scorer(spec_of("boxed_remote", "http://host:80")), Error);
  EXPECT_THROW(make_scorer(spec_of("math", "http://host:80")), Error) << "a URL for nothing";
  EXPECT_THROW(make_scorer("remote"), Error);
  EXPECT_GT(make_scorer(spec_of("math,remote=0.5", "http://host:80/x"))->max_batch(), 1u);
  EXPECT_EQ(make_scorer(spec_of("math,f1"))->max_batch(), 1u);
  RewardSpec spec = spec_of("math");
  spec.parts[0].weight = std::numeric_limits<double>::infinity();
  EXPECT_THROW(make_scorer(spec), Error);
  spec.parts.clear();
  for (int i = 0; i < 17; ++i) spec.parts.push_back({"math" + std::to_string(i), 1});
  EXPECT_THROW(make_scorer(spec), Error);
}

}  // namespace
}  // namespace nibble
