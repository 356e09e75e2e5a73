// Which updates are refused, and that refused ones change nothing.
#include "trainer/guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/trainer/tiny_trainer.h"

namespace nibble {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

GuardsConfig watching_all() {
  GuardsConfig config;
  config.grad_norm_factor = 3.0;
  config.max_kl = 0.5;
  config.max_gap = 0.1;
  return config;
}

Guard with_norms(const GuardsConfig& config, int count) {
  Guard guard(config);
  for (int i = 0; i < count; ++i) guard.note(1.0);
  return guard;
}

TEST(Guard, PassesWhatIsWithinEveryLimit) {
  EXPECT_FALSE(with_norms(watching_all(), 16).check({0.1, 2.9, 0.09, 0.4}));
  EXPECT_FALSE(with_norms({}, 16).check({-5.0, 1e9, 50.0, 1e6})) << "nothing is watched";
}

TEST(Guard, NamesTheLimitThatIsPassed) {
  const Guard guard = with_norms(watching_all(), 16);
  const auto norm = guard.check({0.1, 3.1, 0.0, 0.0});
  ASSERT_TRUE(norm);
  EXPECT_EQ(norm->watch, GuardWatch::kGradNorm);
  EXPECT_EQ(norm->action, GuardAction::kSkip);
  EXPECT_DOUBLE_EQ(norm->value, 3.1);
  EXPECT_DOUBLE_EQ(norm->limit, 3.0);
  EXPECT_EQ(guard.check({0.1, 1.0, 0.2, 0.0})->watch, GuardWatch::kGap);
  // Of several the most severe: kl stops by default.
  EXPECT_EQ(guard.check({0.1, 9.0, 0.2, 0.6})->watch, GuardWatch::kKl);
}

TEST(Guard, NothingThatIsNotFiniteGetsThrough) {
  const GuardsConfig off;
  for (const GuardFigures& figures :
       {GuardFigures{kNaN, 1, 0, 0}, GuardFigures{0, INFINITY, 0, 0}, GuardFigures{0, 1, kNaN, {}},
        GuardFigures{0, 1, 0, -INFINITY}}) {
    const auto trip = Guard(off).check(figures);
    ASSERT_TRUE(trip);
    EXPECT_EQ(trip->watch, GuardWatch::kNonfinite);
    EXPECT_EQ(trip->action, GuardAction::kStop);
  }
}

TEST(Guard, ACriticThatIsNotFiniteIsNamed) {
  for (const auto& [loss, norm] : {std::pair{kNaN, 1.0}, {0.5, double{INFINITY}}}) {
    const auto trip = Guard({}).check({0, 1, 0, {}, loss, norm});
    ASSERT_TRUE(trip);
    EXPECT_EQ(trip->watch, GuardWatch::kCriticNonfinite);
    EXPECT_EQ(trip->action, GuardAction::kStop);
    EXPECT_FALSE(std::isfinite(trip->value));
  }
  EXPECT_FALSE(Guard({}).check({0, 1, 0, {}, 0.5, 1e9}));
}

TEST(Guard, ASpikeNeedsAHistoryAndTheHistoryIsKept) {
  EXPECT_FALSE(with_norms(watching_all(), Guard::kFewest - 1).check({0, 100, 0, 0}));
  const Guard before = with_norms(watching_all(), 40);
  EXPECT_EQ(before.recent_norms().size(), Guard::kWindow);
  Guard after(watching_all());
  after.restore(before.recent_norms());
  EXPECT_TRUE(after.check({0, 100, 0, 0}));
}

TEST(Suspects, AreTheFurthestFromWhatIsExpected) {
  const std::vector<SampleSuspicion> samples = {{1, 0, 0.1, 9.0, 0.1, true},
                                                {2, 1, 0.7, 0.0, 0.2, true},
                                                {3, 2, 0.5, 1.0, 0.9, true},
                                                {4, 3, 0.6, 2.0, 0.3, true},
                                                {5, 0, 0.2, 3.0, 0.4, true}};
  const auto by_gap = suspects(samples, GuardWatch::kGap);
  ASSERT_EQ(by_gap.size(), 4u);
  EXPECT_EQ(by_gap[0].prompt_id, 2u);
  EXPECT_EQ(by_gap[1].prompt_id, 4u);
  EXPECT_EQ(suspects(samples, GuardWatch::kKl)[0].prompt_id, 1u);
  EXPECT_EQ(suspects(samples, GuardWatch::kGradNorm)[0].prompt_id, 3u);
  std::vector<SampleSuspicion> broken = samples;
  broken[4].is_finite = false;
  const auto only = suspects(broken, GuardWatch::kNonfinite);
  ASSERT_EQ(only.size(), 1u);
  EXPECT_EQ(only[0].prompt_id, 5u);
}

class RefusedUpdates : public ::testing::Test {
 protected:
  // Trains on five groups, of which one sample may have a log-probability that is not finite.
  TrainMetrics train(Trainer& trainer, bool breaks) {
    std::vector<SampleGroup> groups = make_groups(5, 6);
    fill_log_probs(trainer, groups);
    if (breaks) groups[3].samples[2].log_probs[1] = static_cast<float>(kNaN);
    return trainer.train(std::span(&groups, 1), 0);
  }
  static Trainer make(GuardAction action) {
    TrainerConfig config = make_config("dense_untied", Mode::kQat);
    config.guards.nonfinite = action;
    return Trainer(std::move(config), solo());
  }
  static const MeshGroups& solo() {
    static const auto group = solo_group("trainers");
    static const MeshGroups groups(
        {1, 1, 1}, *group, [](const std::string& name, int, int) { return solo_group(name); });
    return groups;
  }
};

TEST_F(RefusedUpdates, ChangeNothingAndNameTheSamples) {
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5};
  Trainer trainer = make(GuardAction::kSkip);
  const auto before = trainer.log_probs(ids);
  const TrainMetrics metrics = train(trainer, true);
  EXPECT_EQ(metrics.skipped_updates, 1);
  ASSERT_TRUE(metrics.trip);
  EXPECT_EQ(metrics.trip->watch, GuardWatch::kNonfinite);
  EXPECT_EQ(metrics.trip->action, GuardAction::kSkip);
  ASSERT_EQ(metrics.trip_suspects.size(), 1u);
  EXPECT_EQ(metrics.trip_suspects[0].prompt_id, 3u);
  EXPECT_EQ(metrics.trip_suspects[0].sample_index, 2u);
  EXPECT_EQ(trainer.log_probs(ids), before);
  // And the next update is as it would have been.
  Trainer other = make(GuardAction::kSkip);
  (void)train(other, false);
  const TrainMetrics next = train(trainer, false);
  EXPECT_EQ(next.skipped_updates, 0);
  EXPECT_FALSE(next.trip);
  EXPECT_EQ(trainer.log_probs(ids), other.log_probs(ids));
  EXPECT_NE(trainer.log_probs(ids), before);
}

TEST_F(RefusedUpdates, AreThoseOfTheirOwnSamples) {
  TrainerConfig config = make_config("dense_untied", Mode::kQat);
  config.guards.nonfinite = GuardAction::kSkip;
  config.optimizer.steps_per_rollout = 2;
  Trainer trainer(config, solo());
  std::vector<std::vector<SampleGroup>> updates = {make_groups(3, 6), make_groups(3, 6)};
  for (auto& groups : updates) fill_log_probs(trainer, groups);
  updates[0][1].samples[0].log_probs[0] = static_cast<float>(kNaN);
  EXPECT_EQ(trainer.train(updates, 0).skipped_updates, 1);
}

TEST_F(RefusedUpdates, NoneForWhatIsMasked) {
  TrainerConfig config = make_config("dense_untied", Mode::kQat);
  config.guards.nonfinite = GuardAction::kSkip;
  config.algorithm.mask_truncated = true;
  Trainer trainer(config, solo());
  std::vector<SampleGroup> groups = make_groups(3, 6);
  fill_log_probs(trainer, groups);
  groups[1].samples[0].log_probs[0] = static_cast<float>(kNaN);
  groups[1].samples[0].finish_reason = "length";
  EXPECT_EQ(trainer.train(std::span(&groups, 1), 0).skipped_updates, 0);
}

TEST_F(RefusedUpdates, AStepInWhichNothingCountsIsNone) {
  TrainerConfig config = make_config("dense_untied", Mode::kQat);
  config.algorithm.mask_truncated = true;
  Trainer trainer(config, solo());
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5};
  std::vector<SampleGroup> groups = make_groups(3, 6);
  fill_log_probs(trainer, groups);
  for (SampleGroup& group : groups) {
    for (Sample& sample : group.samples) sample.finish_reason = "length";
  }
  const auto before = trainer.log_probs(ids);
  const TrainMetrics metrics = trainer.train(std::span(&groups, 1), 0);
  EXPECT_EQ(metrics.skipped_updates, 1);
  EXPECT_EQ(metrics.response_tokens, 0);
  EXPECT_EQ(trainer.log_probs(ids), before);
}

}  // namespace
}  // namespace nibble
