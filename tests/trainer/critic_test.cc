// The critic that is trained beside the model: what it learns, when, and what checkpoints keep.
#include "trainer/critic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/base/error.h"
#include "core/base/file.h"
#include "tests/trainer/oracle_records.h"
#include "tests/trainer/tiny_critic.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
constexpr const char* kModel = "dense_untied";

const MeshGroups& solo() {
  static const auto group = solo_group("trainers");
  static const MeshGroups groups(*group);
  return groups;
}

TrainMetrics train(Trainer& trainer, std::vector<SampleGroup> groups, int64_t step) {
  fill_log_probs(trainer, groups);
  return trainer.train(std::span(&groups, 1), step);
}

std::string state_of(Trainer& trainer, const fs::path& directory) {
  trainer.save(directory, {1, 1, 0});
  return digest_checkpoint(directory).state_sha256;
}

const std::vector<int32_t> kIds = {5, 9, 200, 31, 77};

TEST(Critic, BeginsWithoutAnOpinionAndLearnsWhatReturnsAre) {
  Trainer trainer(gae_config(kModel), solo());
  const auto groups = parity_groups(4, 3);
  const CriticMetrics first = *train(trainer, groups, 1).critic;
  EXPECT_EQ(first.value_mean, 0);
  EXPECT_EQ(first.explained_variance, 0);
  EXPECT_EQ(first.loss.clip_share, 0);
  EXPECT_GT(first.update.grad_norm, 0);
  CriticMetrics last;
  for (int step = 2; step <= 15; ++step) last = *train(trainer, groups, step).critic;
  EXPECT_LT(last.loss.loss, 0.2 * first.loss.loss);
  EXPECT_GT(last.explained_variance, 0.7);
  EXPECT_GT(last.value_mean, 0.2);
}

TEST(Critic, MayBeAnotherModelThanTheOneThatIsTrained) {
  TrainerConfig config = gae_config(kModel);
  config.critic->model = make_config("moe_norm", Mode::kBf16).model;
  Trainer trainer(std::move(config), solo());
  const auto groups = parity_groups(4, 3);
  const double first = train(trainer, groups, 1).critic->loss.loss;
  double last = first;
  for (int step = 2; step <= 10; ++step) last = train(trainer, groups, step).critic->loss.loss;
  EXPECT_LT(last, 0.5 * first);
}

TEST(Critic, APromptIsComputedOnceForItsResponses) {
  const TempFolder folder;
  const auto groups = parity_groups(3, 4);
  std::vector<SampleGroup> apart;
  for (const SampleGroup& group : groups) {
    for (const Sample& sample : group.samples) {
      apart.push_back(group);
      apart.back().samples = {sample};
    }
  }
  const auto run = [&](const std::vector<SampleGroup>& rollout, const char* name) {
    Trainer trainer(gae_config(kModel), solo());
    TrainMetrics metrics;
    for (int step = 1; step <= 3; ++step) metrics = train(trainer, rollout, step);
    trainer.save(folder.path / name, {3, 3, 0});
    return metrics;
  };
  const TrainMetrics together = run(groups, "together"), each = run(apart, "apart");
  EXPECT_LT(together.computed_tokens, each.computed_tokens);
  EXPECT_NEAR(together.critic->value_mean / each.critic->value_mean, 1, 1e-4);
  EXPECT_NEAR(together.critic->loss.loss / each.critic->loss.loss, 1, 1e-4);
  const CheckpointReader one(folder.path / "together"), other(folder.path / "apart");
  for (const ParameterSpec& parameter : one.critic()->spec.table.parameters) {
    std::vector<float> m, want;
    one.critic()->rows.read_rows("m", parameter, {0, parameter.rows}, m);
    other.critic()->rows.read_rows("m", parameter, {0, parameter.rows}, want);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < m.size(); ++i) {
      difference += std::pow(m[i] - want[i], 2);
      norm += std::pow(want[i], 2);
    }
    EXPECT_LE(std::sqrt(difference), 1e-3 * std::sqrt(norm)) << parameter.name();
    EXPECT_GT(norm, 0) << parameter.name();
  }
}

TEST(Critic, LearnsAloneInTheStepsOfItsWarmUp) {
  TrainerConfig config = gae_config(kModel);
  config.critic->warmup_steps = 2;
  Trainer trainer(std::move(config), solo());
  const auto groups = parity_groups(4, 3);
  const auto start = trainer.log_probs(kIds);
  std::vector<double> losses;
  for (int step = 1; step <= 2; ++step) {
    const TrainMetrics metrics = train(trainer, groups, step);
    losses.push_back(metrics.critic->loss.loss);
    EXPECT_EQ(metrics.update.lr, 0);
    EXPECT_GT(metrics.entropy, 0) << "figures are measured all the same";
    EXPECT_EQ(trainer.log_probs(kIds), start);
  }
  EXPECT_LT(losses[1], losses[0]);
  EXPECT_GT(train(trainer, groups, 3).update.lr, 0);
  EXPECT_NE(trainer.log_probs(kIds), start);
}

TEST(Critic, WarmsUpByItsOwnAgeInARunThatHadNone) {
  const TempFolder folder;
  TrainerConfig config = gae_config(kModel);
  config.critic->warmup_steps = 1;
  Trainer trainer(config, solo());
  config.critic.reset();
  config.algorithm.advantage.type = AdvantageType::kGrpo;
  Trainer plain(std::move(config), solo());
  plain.save(folder.path / "plain", {40, 41, 0});
  const auto groups = parity_groups(2, 3);
  for (int run = 0; run < 2; ++run) {
    EXPECT_EQ(train(trainer, groups, 41).update.lr, 0);
    EXPECT_GT(train(trainer, groups, 42).update.lr, 0);
    trainer.load(folder.path / "plain");
  }
}

TEST(Critic, ValuesAreClippedAgainstThoseBeforeTheFirstUpdate) {
  const auto clip_share = [](double clip) {
    TrainerConfig config = gae_config(kModel);
    config.critic->value_clip = clip;
    config.optimizer.steps_per_rollout = 2;
    Trainer trainer(std::move(config), solo());
    std::vector<std::vector<SampleGroup>> updates = {parity_groups(3, 5), parity_groups(3, 6)};
    for (auto& groups : updates) fill_log_probs(trainer, groups);
    return trainer.train(updates, 1).critic->loss.clip_share;
  };
  EXPECT_NEAR(clip_share(1e-6), 1, 1e-12) << "the first update moved every value";
  EXPECT_EQ(clip_share(100), 0);
}

TEST(Critic, HasALearningRateAndAClipOfItsOwn) {
  TrainerConfig config = gae_config(kModel);
  config.critic->lr = 0.5;
  config.critic->lr_warmup_steps = 5;
  config.optimizer.lr = 0.25;
  EXPECT_EQ(critic_optimizer(*config.critic, config.optimizer).beta2, config.optimizer.beta2);
  config.optimizer.lr = 0;
  Trainer trainer(std::move(config), solo());
  const auto groups = parity_groups(2, 3);
  EXPECT_EQ(train(trainer, groups, 1).critic->update.lr, 0);
  const TrainMetrics second = train(trainer, groups, 2);
  EXPECT_DOUBLE_EQ(second.critic->update.lr, 0.1);
  EXPECT_EQ(second.update.lr, 0);
}

TEST(CriticGuard, AnUpdateThatIsNotFiniteIsRefusedForBoth) {
  const TempFolder folder;
  TrainerConfig config = gae_config(kModel);
  config.guards.nonfinite = GuardAction::kSkip;
  config.algorithm.loss.aggregation = Aggregation::kSeqMeanTokenSumNorm;
  Trainer trainer(std::move(config), solo());
  train(trainer, parity_groups(2, 3), 1);
  const std::string before = state_of(trainer, folder.path / "before");
  // The model's: of a log-probability.
  auto groups = parity_groups(2, 3);
  fill_log_probs(trainer, groups);
  auto broken = groups;
  broken[1].samples[2].log_probs[1] = std::numeric_limits<float>::quiet_NaN();
  TrainMetrics metrics = trainer.train(std::span(&broken, 1), 2);
  ASSERT_TRUE(metrics.trip);
  EXPECT_EQ(metrics.trip->watch, GuardWatch::kNonfinite);
  EXPECT_EQ(state_of(trainer, folder.path / "model"), before);
  // The critic's alone: rewards that normalized advantages bear and float32 gradients do not.
  broken = groups;
  for (Sample& sample : broken[0].samples) sample.reward = 3e38;
  metrics = trainer.train(std::span(&broken, 1), 2);
  ASSERT_TRUE(metrics.trip);
  EXPECT_EQ(metrics.trip->watch, GuardWatch::kCriticNonfinite);
  EXPECT_TRUE(std::isfinite(metrics.loss.loss) && std::isfinite(metrics.update.grad_norm));
  EXPECT_EQ(metrics.skipped_updates, 1);
  EXPECT_EQ(guard_watch_name(metrics.trip->watch), "critic_nonfinite");
  EXPECT_EQ(state_of(trainer, folder.path / "critic"), before);
  EXPECT_FALSE(trainer.train(std::span(&groups, 1), 2).trip);
  EXPECT_NE(state_of(trainer, folder.path / "after"), before);
}

TEST(CriticCheckpoint, AResumedRunIsTheUninterruptedOneToTheBit) {
  for (const MomentType moments : {MomentType::kFp32, MomentType::kBf16}) {
    const TempFolder folder;
    TrainerConfig config = gae_config(kModel);
    config.optimizer.state = moments;
    Trainer whole(config, solo());
    const auto step = [](Trainer& trainer, int number) {
      return *train(trainer, parity_groups(3, static_cast<uint32_t>(number)), number).critic;
    };
    for (int number = 1; number <= 2; ++number) step(whole, number);
    whole.save(folder.path / "half", {2, 2, 0});
    Trainer resumed(config, solo());
    resumed.load(folder.path / "half");
    EXPECT_EQ(state_of(resumed, folder.path / "read"),
              digest_checkpoint(folder.path / "half").state_sha256);
    for (int number = 3; number <= 4; ++number) {
      const CriticMetrics a = step(whole, number), b = step(resumed, number);
      EXPECT_EQ(a.loss.loss, b.loss.loss);
      EXPECT_EQ(a.value_mean, b.value_mean);
    }
    EXPECT_EQ(state_of(whole, folder.path / "a"), state_of(resumed, folder.path / "b"));
    EXPECT_EQ(CheckpointReader(folder.path / "a").critic()->updates, 4);
  }
}

TEST(CriticCheckpoint, WithoutACriticOneBeginsAnewAndOneThatIsNotWantedIsIgnored) {
  const TempFolder folder;
  const auto groups = parity_groups(3, 3);
  TrainerConfig with = gae_config(kModel), without = gae_config(kModel);
  without.critic.reset();
  without.algorithm.advantage.type = AdvantageType::kGrpo;
  Trainer plain(without, solo());
  train(plain, groups, 1);
  plain.save(folder.path / "plain", {1, 1, 0});
  EXPECT_EQ(CheckpointReader(folder.path / "plain").critic(), nullptr);

  Trainer valued(with, solo());
  const std::string fresh = state_of(valued, folder.path / "fresh");
  for (int step = 1; step <= 3; ++step) train(valued, groups, step);
  EXPECT_NE(train(valued, groups, 4).critic->value_mean, 0);
  valued.save(folder.path / "valued", {1, 1, 0});
  valued.load(folder.path / "plain");  // as a guard that rolls back would
  EXPECT_EQ(valued.log_probs(kIds), plain.log_probs(kIds));
  EXPECT_EQ(train(valued, groups, 5).critic->value_mean, 0);

  plain.load(folder.path / "valued");
  EXPECT_NE(state_of(plain, folder.path / "again"), fresh);
  EXPECT_EQ(CheckpointReader(folder.path / "again").critic(), nullptr);
  const CheckpointDigest now = digest_checkpoint(folder.path / "again"),
                         then = digest_checkpoint(folder.path / "valued");
  EXPECT_EQ(now.weights_sha256, then.weights_sha256);
  EXPECT_NE(now.state_sha256, then.state_sha256) << "the critic's state is a part of it";
}

TEST(CriticCheckpoint, ADamagedOrMissingCriticIsNamed) {
  const TempFolder folder;
  Trainer trainer(gae_config(kModel), solo());
  train(trainer, parity_groups(2, 3), 1);
  const fs::path directory = folder.path / "step",
                 file = directory / "critic-000-of-001.safetensors";
  trainer.save(directory, {1, 1, 0});
  const auto problem = [&] {
    try {
      trainer.load(directory);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  EXPECT_EQ(problem(), "none");
  std::string bytes = read_file(file, 1 << 28);
  bytes.back() ^= 1;
  write_file_atomically(file, bytes);
  EXPECT_NE(problem().find("critic-000-of-001.safetensors', tensor 'v/score.weight'"),
            std::string::npos)
      << problem();
  fs::remove(file);
  EXPECT_NE(problem().find("critic-000-of-001.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace nibble
