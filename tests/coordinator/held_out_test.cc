#include "coordinator/held_out.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

EvalSetSection named(const std::string& name) {
  EvalSetSection set;
  set.name = name;
  set.data = name + ".jsonl";
  return set;
}

TEST(HeldOutSets, TheOneOfEvalDataIsSampledAsEvalSays) {
  EvalSection eval;
  EXPECT_THAT(held_out_sets(eval, 7), IsEmpty());
  eval.data = "a.jsonl";
  eval.samples = 3;
  eval.temperature = 0.5;
  const auto sets = held_out_sets(eval, 7);
  ASSERT_EQ(sets.size(), 1u);
  EXPECT_EQ(sets[0].name, "");
  EXPECT_EQ(sets[0].data, "a.jsonl");
  EXPECT_EQ(sets[0].samples, 3);
  EXPECT_EQ(sets[0].temperature, 0.5);
  EXPECT_EQ(sets[0].max_new_tokens, 7);
  EXPECT_EQ(held_out_problem(eval), "");
}

TEST(HeldOutSets, ASetTakesWhatItLeavesOutFromEval) {
  EvalSection eval;
  eval.samples = 3;
  eval.temperature = 0.5;
  eval.sets = {named("plain"), named("greedy")};
  eval.sets[1].samples = 1;
  eval.sets[1].temperature = 0.0;
  eval.sets[1].top_p = 0.9;
  eval.sets[1].top_k = 20;
  eval.sets[1].max_new_tokens = 99;
  const auto sets = held_out_sets(eval, 7);
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[0].samples, 3);
  EXPECT_EQ(sets[0].temperature, 0.5);
  EXPECT_EQ(sets[0].top_p, 1.0);
  EXPECT_EQ(sets[0].max_new_tokens, 7);
  EXPECT_EQ(sets[0].metric("reward_mean"), "eval_plain_reward_mean");
  EXPECT_EQ(sets[1].samples, 1);
  EXPECT_EQ(sets[1].temperature, 0.0);
  EXPECT_EQ(sets[1].top_p, 0.9);
  EXPECT_EQ(sets[1].top_k, 20);
  EXPECT_EQ(sets[1].max_new_tokens, 99);
  EXPECT_EQ(held_out_problem(eval), "");
}

TEST(HeldOutSets, WhatTheyContradictIsNamed) {
  EvalSection eval;
  eval.sets = {named("a"), named("b")};
  eval.data = "c.jsonl";
  EXPECT_THAT(held_out_problem(eval), HasSubstr("eval.data: "));
  eval.data.clear();
  eval.sets[1].name = "a";
  EXPECT_THAT(held_out_problem(eval), HasSubstr("eval.sets.1.name: 'a'"));
  for (const std::string name : {"", "a b", "a/b", "a-b", "\"", "\xc3\xa4"}) {
    eval.sets[1].name = name;
    EXPECT_THAT(held_out_problem(eval), HasSubstr("eval.sets.1.name: ")) << name;
  }
  eval.sets[1].name = std::string(41, 'x');
  EXPECT_THAT(held_out_problem(eval), HasSubstr("eval.sets.1.name: "));
  eval.sets[1].name = "b";
  eval.sets[1].data.clear();
  EXPECT_THAT(held_out_problem(eval), HasSubstr("eval.sets.1.data: "));
}

}  // namespace
}  // namespace nibble
