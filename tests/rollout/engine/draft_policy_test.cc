// What is worth guessing, from times and fates that are given.
#include "rollout/engine/draft_policy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "rollout/engine/chained_drafter.h"
#include "rollout/engine/draft_budget.h"
#include "rollout/engine/request.h"

namespace nibble {
namespace {

// Steps of a + b n milliseconds; a draft model's of c + d n.
struct Machine {
  double a, b, c, d;
};

const int kKind = DraftPolicy::kind_of({1, 0.6f, DraftToken::kFromModel});

DraftPolicy trained(const Machine& machine, double chance) {
  DraftPolicy policy;
  const int kind = kKind;
  for (int i = 0; i < 1000; ++i) {
    const int64_t n = 1 + i % 16;
    const auto tokens = static_cast<double>(n);
    policy.observe_step(n, machine.a + machine.b * tokens);
    policy.observe_draft(n, n, machine.c + machine.d * tokens, false);
    policy.observe_guess(kind, i % 10 < std::lround(10 * chance));
    policy.observe_drafted(kind);
  }
  return policy;
}

double chance_of(const DraftPolicy& policy) { return policy.chance(kKind); }

// How many steps of the model a round of `samples` takes, all guesses as sure as ever.
int64_t depth(const DraftPolicy& policy, int64_t samples) {
  DraftBudget budget(policy, samples);
  double chance = 1.0;
  int64_t steps = 0;
  while (steps < 64 && budget.wants(budget.gain(chance)) &&
         budget.takes(budget.gain(chance) * static_cast<double>(samples), samples)) {
    ++steps;
    chance *= chance_of(policy);
  }
  return steps;
}

// Tokens a millisecond with so many guesses each.
double yield(const Machine& m, double chance, int64_t samples, int64_t guesses) {
  const auto n = static_cast<double>(samples);
  double tokens = n, of_all = 1.0;
  double ms = m.a + m.b * n;
  for (int64_t i = 0; i < guesses; ++i) {
    of_all *= chance;
    tokens += n * of_all;
    ms += m.b * n + m.c + m.d * n;
  }
  return tokens / ms;
}

TEST(DraftBudget, TakesTheNumberOfStepsThatYieldsMost) {
  for (const Machine& machine : {Machine{10, 0.1, 1, 0.01}, Machine{10, 0.5, 2, 0.1},
                                 Machine{1, 1, 0.1, 0.1}, Machine{5, 0.2, 5, 0.2}}) {
    for (const double chance : {0.3, 0.6, 0.9}) {
      const DraftPolicy policy = trained(machine, chance);
      for (const int64_t samples : {1, 4, 16}) {
        int64_t best = 0;
        for (int64_t guesses = 1; guesses < 64; ++guesses) {
          if (yield(machine, chance_of(policy), samples, guesses) >
              yield(machine, chance_of(policy), samples, best)) {
            best = guesses;
          }
        }
        EXPECT_EQ(depth(policy, samples), best)
            << "a=" << machine.a << " b=" << machine.b << " c=" << machine.c << " chance=" << chance
            << " samples=" << samples;
      }
    }
  }
}

TEST(DraftBudget, ADraftThatIsAsDearAsTheModelTakesNone) {
  EXPECT_EQ(depth(trained({5, 0.2, 5, 0.2}, 0.9), 1), 0);
  EXPECT_GT(depth(trained({5, 0.2, 0.5, 0.02}, 0.9), 1), 2);
}

TEST(DraftBudget, TriesUntilTimesAreKnownAndAlwaysIfNothingAdapts) {
  DraftPolicy fresh;
  EXPECT_TRUE(DraftBudget(fresh, 1).takes(1.0, 1));
  DraftPolicy fixed(false);
  for (int i = 0; i < 50; ++i) {
    fixed.observe_step(1 + i % 4, 1.0);
    fixed.observe_draft(1 + i % 4, 1 + i % 4, 100.0, false);
  }
  EXPECT_TRUE(DraftBudget(fixed, 1).takes(1.0, 1));
  const std::vector<DraftToken> guesses(7);
  EXPECT_EQ(fixed.num_worth(guesses, 1), 7);
}

TEST(DraftPolicy, WhatADraftHasToCatchUpWithCountsAsItsCost) {
  DraftPolicy policy = trained({10, 0.1, 1, 0.01}, 0.9);
  const double before = policy.draft_ms(4);
  EXPECT_NEAR(before, 1.04, 0.02);
  for (int i = 0; i < 400; ++i) {
    policy.observe_draft(4, 4, 1.04, false);
    if (i % 4 == 0) policy.observe_draft(200, 4, 12.48, false);  // prompts
  }
  // Five steps' guesses take four steps and a prompt of twelve.
  EXPECT_NEAR(policy.draft_ms(4), before * (4 + 12) / 5, 0.3);
  // Tries do not count what they catch up with.
  for (int i = 0; i < 1000; ++i) policy.observe_draft(200, 4, 12.48, true);
  EXPECT_NEAR(policy.draft_ms(4), before, 0.1);
}

TEST(DraftPolicy, TriesADraftThatDoesNotPayLessAndLessOften) {
  DraftPolicy policy;
  const auto refusals_to_a_try = [&] {
    int refusals = 1;
    while (!policy.tries_model()) ++refusals;
    return refusals;
  };
  for (const int want : {64, 128, 256, 512, 1024, 1024}) EXPECT_EQ(refusals_to_a_try(), want);
  policy.observe_draft(4, 4, 1.0, true);
  EXPECT_EQ(refusals_to_a_try(), 1024);
  policy.observe_draft(4, 4, 1.0, false);  // one that pays
  EXPECT_EQ(refusals_to_a_try(), 64);
}

TEST(DraftPolicy, GuessesOfAModelAreCountedByItsProbability) {
  DraftPolicy policy;
  const int sure = DraftPolicy::kind_of({1, 0.99f, DraftToken::kFromModel});
  const int unsure = DraftPolicy::kind_of({1, 0.1f, DraftToken::kFromModel});
  const int looked_up = DraftPolicy::kind_of({1, 0.99f, DraftToken::kMostEvidence});
  EXPECT_NE(sure, unsure);
  EXPECT_NE(sure, looked_up);
  EXPECT_LT(sure, DraftPolicy::kNumKinds);
  for (int i = 0; i < 500; ++i) {
    policy.observe_guess(sure, true);
    policy.observe_guess(unsure, false);
    policy.observe_guess(looked_up, false);
  }
  EXPECT_GT(policy.chance(sure), 0.95);
  EXPECT_LT(policy.chance(unsure), 0.05);
}

TEST(DraftPolicy, OfADraftThatIsSeldomSureOnlyWhatIsCheckedCounts) {
  DraftPolicy policy;
  const int sure = DraftPolicy::kind_of({1, 0.99f, DraftToken::kFromModel});
  const int unsure = DraftPolicy::kind_of({1, 0.1f, DraftToken::kFromModel});
  for (int i = 0; i < 2000; ++i) {
    policy.observe_drafted(i % 4 == 0 ? sure : unsure);
    policy.observe_guess(sure, true);
    policy.observe_guess(unsure, i % 5 == 0);
  }
  EXPECT_NEAR(policy.model_chance(), 0.25 + 0.75 * 0.2, 0.02);
  // Where a guess must be better than 0.3, the unsure ones bring nothing.
  EXPECT_NEAR(policy.model_gain(1.0, 0.3), 0.25, 0.02);
  EXPECT_NEAR(policy.model_gain(0.5, 0.3), 0.125, 0.01);
  EXPECT_EQ(policy.model_gain(0.2, 0.3), 0.0);
}

// Says the same always.
class Parrot final : public Drafter {
 public:
  Parrot(std::vector<DraftToken> guesses, int64_t& asked)
      : guesses_(std::move(guesses)), asked_(asked) {}
  void begin(const GenerateRequest&, std::span<const int32_t>, std::span<const int32_t>) override {}
  void extend(uint64_t, int32_t) override {}
  void end(uint64_t, bool) override {}
  void propose(const DraftRound& round, DraftPolicy&) override {
    for (DraftQuery& query : round.queries) {
      if (!query.guesses.empty()) continue;
      ++asked_;
      query.guesses = guesses_;
    }
  }
  int64_t num_bytes() const override { return 3; }

 private:
  const std::vector<DraftToken> guesses_;
  int64_t& asked_;
};

TEST(ChainedDrafter, AsksTheModelWhereTheFirstIsLessLikelyToBeRight) {
  const DraftToken from_first{1, 0.99f, 2};
  const DraftToken from_model{2, 0.99f, DraftToken::kFromModel};
  DraftPolicy policy;
  int64_t first_asked = 0, model_asked = 0;
  ChainedDrafter chain(std::make_unique<Parrot>(std::vector<DraftToken>{from_first}, first_asked),
                       std::make_unique<Parrot>(std::vector<DraftToken>{from_model}, model_asked));
  EXPECT_EQ(chain.num_bytes(), 6);
  const auto answer = [&] {
    std::vector<DraftQuery> one = {{1, 4, {}}};
    chain.propose({one, 1, 8}, policy);
    return one[0].guesses.at(0).token;
  };
  EXPECT_EQ(answer(), 1) << "nothing is known: the cheaper one";
  EXPECT_EQ(model_asked, 0);
  for (int i = 0; i < 100; ++i) policy.observe_guess(DraftPolicy::kind_of(from_first), false);
  EXPECT_EQ(answer(), 2);
  for (int i = 0; i < 900; ++i) {
    policy.observe_guess(DraftPolicy::kind_of(from_model), false);
    policy.observe_drafted(DraftPolicy::kind_of(from_model));
  }
  for (int i = 0; i < 100; ++i) policy.observe_guess(DraftPolicy::kind_of(from_first), true);
  EXPECT_EQ(answer(), 1);
}

TEST(ChainedDrafter, KeepsWhatTheFirstSaidIfTheModelSaysNothing) {
  DraftPolicy policy;
  int64_t first_asked = 0, model_asked = 0;
  const DraftToken from_first{1, 0.1f, 0};
  ChainedDrafter chain(std::make_unique<Parrot>(std::vector<DraftToken>{from_first}, first_asked),
                       std::make_unique<Parrot>(std::vector<DraftToken>{}, model_asked));
  for (int i = 0; i < 100; ++i) policy.observe_guess(DraftPolicy::kind_of(from_first), false);
  std::vector<DraftQuery> two = {{1, 4, {}}, {2, 4, {}}};
  chain.propose({two, 2, 8}, policy);
  EXPECT_EQ(model_asked, 2);
  EXPECT_EQ(two[0].guesses.at(0).token, 1);
  EXPECT_EQ(two[1].guesses.at(0).token, 1);
}

}  // namespace
}  // namespace nibble
