// How a trainer carries out an algorithm: rewards of tokens, what is left out, which
// log-probabilities are the old ones, the entropy bonus.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/trainer/oracle_records.h"
#include "tests/trainer/tiny_trainer.h"
#include "trainer/scoring.h"
#include "trainer/update_work.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;
constexpr const char* kModel = "dense_untied";
constexpr const char* kTeacher = "moe_norm";  // of another architecture, the same vocabulary

TrainerConfig reinforce_config(AdvantageType type) {
  TrainerConfig config = make_config(kModel, Mode::kQat);
  config.algorithm.loss.kl_coef = 0.0;
  config.algorithm.advantage.type = type;
  if (type == AdvantageType::kOpd) {
    config.teacher = make_config(kTeacher, Mode::kQat).model;
    return config;
  }
  config.algorithm.advantage.kl_reward_coef = 0.1;
  config.algorithm.advantage.gamma = type == AdvantageType::kReinforcePp ? 0.97 : 1.0;
  return config;
}

struct Figures {
  double loss, policy_loss, grad_norm, kl, entropy, ratio_max, kl_teacher;
};

// One update of ranks that share five groups, in children, because torch's threads must not
// exist when ranks fork; for the same reason the first test.
Figures of_ranks(const Mesh& mesh, AdvantageType type) {
  const TempFolder folder;
  const std::filesystem::path out = folder.path / "figures";
  const int port = free_port();
  const int done = run_ranks(mesh.world, 100s, [&](int rank) {
    std::unique_ptr<RendezvousServer> server;
    if (rank == 0) server = std::make_unique<RendezvousServer>(port);
    const auto join = [&](const std::string& name, int place, int size) {
      return size == 1 ? solo_group(name)
                       : join_gloo_group({"127.0.0.1", port, name, 30s}, place, size);
    };
    const auto all = join("trainers", rank, mesh.world);
    const MeshGroups groups(mesh, *all, join);
    TrainerConfig config = reinforce_config(type);
    config.algorithm.loss.entropy_coef = 0.01;
    Trainer trainer(std::move(config), groups);
    auto samples = make_groups(5, 6);
    fill_log_probs(trainer, samples);
    std::vector<int64_t> tokens;
    tokens.reserve(samples.size());
    for (const SampleGroup& group : samples) tokens.push_back(group_tokens(group));
    std::vector<SampleGroup> mine;
    const auto shares = balance_groups(tokens, mesh.num_data());
    for (const int64_t g : shares[static_cast<size_t>(mesh.data_rank(rank))]) {
      mine.push_back(samples[static_cast<size_t>(g)]);
    }
    const TrainMetrics m = trainer.train(std::span(&mine, 1), 0);
    if (rank == 0) {
      const Figures figures{m.loss.loss, m.loss.policy_loss, m.update.grad_norm, m.kl_reference,
                            m.entropy,   m.loss.ratio_max,   m.kl_teacher};
      write_file_atomically(out, {reinterpret_cast<const char*>(&figures), sizeof(figures)});
    }
    std::vector<std::byte> last(static_cast<size_t>(mesh.world));
    all->all_gather(std::span(last).first(1), last)->wait();  // the store's host leaves last
  });
  Figures figures{};
  EXPECT_EQ(done, mesh.world);
  if (done != mesh.world) return figures;
  const std::string bytes = read_file(out, 1000);
  std::memcpy(&figures, bytes.data(), sizeof(figures));
  return figures;
}

TEST(TokenRewards, WithKlAreNormalizedOverAllRanks) {
  for (const AdvantageType type :
       {AdvantageType::kReinforcePp, AdvantageType::kReinforcePpBaseline, AdvantageType::kOpd}) {
    const Figures one = of_ranks({1}, type);
    EXPECT_GT(one.grad_norm, 0);
    EXPECT_GT(one.kl, 0);
    // Two ranks share the samples; two tensor ranks have the same ones, which must not count twice.
    for (const Mesh mesh : {Mesh{2}, Mesh{2, 2, 1}}) {
      const Figures two = of_ranks(mesh, type);
      EXPECT_NEAR(two.loss, one.loss, 1e-6);
      EXPECT_NEAR(two.policy_loss, one.policy_loss, 1e-6);
      EXPECT_NEAR(two.grad_norm / one.grad_norm, 1, 1e-5);
      EXPECT_NEAR(two.kl / one.kl, 1, 1e-6);
      EXPECT_NEAR(two.entropy / one.entropy, 1, 1e-6);
      EXPECT_EQ(two.ratio_max, one.ratio_max);
      EXPECT_NEAR(two.kl_teacher, one.kl_teacher, 1e-6);
    }
  }
}

TrainMetrics one_step(TrainerConfig config, std::vector<SampleGroup> groups) {
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  Trainer trainer(std::move(config), ranks);
  fill_log_probs(trainer, groups);
  return trainer.train(std::vector<std::vector<SampleGroup>>{groups}, 0);
}

TEST(Distillation, AdvantagesAreTheTeachersLogProbabilitiesLessTheStudents) {
  const TrainerConfig config = reinforce_config(AdvantageType::kOpd);
  auto groups = make_groups(2, 6);
  const TrainMetrics metrics = one_step(config, groups);
  // The teacher as a trainer of its own, in BF16.
  TrainerConfig alone = make_config(kTeacher, Mode::kBf16);
  const auto group = solo_group("teacher");
  const MeshGroups ranks(*group);
  Trainer teacher(alone, ranks), student(config, ranks);
  double sum = 0, count = 0, by_sample = 0, samples = 0;
  for (const SampleGroup& of : groups) {
    for (const Sample& sample : of.samples) {
      std::vector<int32_t> ids = of.prompt;
      ids.insert(ids.end(), sample.response.begin(), sample.response.end());
      const std::vector<float> theirs = teacher.log_probs(ids), ours = student.log_probs(ids);
      double own = 0;
      for (size_t i = of.prompt.size() - 1; i < ours.size(); ++i) own += theirs[i] - ours[i];
      sum += own;
      count += static_cast<double>(sample.response.size());
      by_sample += own / static_cast<double>(sample.response.size());
      ++samples;
    }
  }
  ASSERT_TRUE(metrics.has_teacher);
  EXPECT_NEAR(metrics.kl_teacher, -sum / count, 1e-6);
  // seq-mean-token-mean at a ratio of 1.
  EXPECT_NEAR(metrics.loss.policy_loss, -by_sample / samples, 1e-6);
  EXPECT_GT(metrics.update.grad_norm, 0);
}

TEST(LearnedReward, FallsOverTheBufferAndNowhereElse) {
  AlgorithmConfig config;
  Sample sample;
  sample.reward = 1.0;
  sample.response.assign(10, 1);
  EXPECT_EQ(learned_reward(sample, config, 10), 1.0);
  config.overlong_buffer = 4;
  config.overlong_penalty = 0.5;
  for (const auto& [length, reward] : {std::pair{6, 1.0}, {8, 0.75}, {10, 0.5}}) {
    sample.response.assign(static_cast<size_t>(length), 1);
    EXPECT_EQ(learned_reward(sample, config, 10), reward) << length;
  }
}

TEST(ScoreGroups, WhatWasCutOffIsMaskedAndCountsInTheMean) {
  std::vector<SampleGroup> groups = make_groups(1, 3);
  for (Sample& sample : groups[0].samples) {
    sample.finish_reason = sample.sample_index == 2 ? "length" : "stop";
    sample.reward = sample.sample_index == 2 ? 1.0 : 0.0;
  }
  AlgorithmConfig config;
  config.advantage.normalize_std = false;
  const auto whole = score_groups(groups, config, 8);
  config.mask_truncated = true;
  const auto masked = score_groups(groups, config, 8);
  EXPECT_EQ(masked[0].advantages, whole[0].advantages);
  EXPECT_EQ(masked[0].is_masked, (std::vector<uint8_t>{0, 0, 1, 0}));
  EXPECT_EQ(whole[0].is_masked, (std::vector<uint8_t>{0, 0, 0, 0}));
  const auto batches = make_micro_batches(masked, 4096);
  ASSERT_EQ(batches.size(), 1u);
  for (size_t s = 0; s < 4; ++s) {
    for (int64_t i = batches[0].sample_begin[s]; i < batches[0].sample_begin[s + 1]; ++i) {
      EXPECT_EQ(batches[0].mask[static_cast<size_t>(i)], s == 2 ? 0 : 1);
    }
  }
}

TEST(AlgorithmFlow, MaskedSamplesAreNotTrainedOn) {
  auto groups = make_groups(3, 4);
  int64_t kept = 0;
  for (SampleGroup& group : groups) {
    for (Sample& sample : group.samples) {
      sample.finish_reason = sample.sample_index == 3 ? "length" : "stop";
      if (sample.sample_index != 3) kept += std::ssize(sample.response);
    }
  }
  TrainerConfig config = make_config(kModel, Mode::kQat);
  config.algorithm.mask_truncated = true;
  EXPECT_EQ(one_step(config, groups).response_tokens, kept);
}

TEST(NeedsOldPass, OnlyWhereNobodyElseHasThem) {
  AlgorithmConfig config;
  EXPECT_FALSE(needs_old_pass(config, 1, false)) << "the only update's own forward pass has them";
  EXPECT_TRUE(needs_old_pass(config, 2, false));
  EXPECT_FALSE(needs_old_pass(config, 2, true)) << "the rollout's are the same bits";
  config.advantage.kl_reward_coef = 0.1;
  EXPECT_TRUE(needs_old_pass(config, 1, false)) << "the reward needs them before the loss";
  config.use_rollout_logprobs = true;
  EXPECT_FALSE(needs_old_pass(config, 2, false));
}

// A pass that computes what the rollout has already must change nothing.
TEST(AlgorithmFlow, ComputedOldLogProbsAreTheExactRollouts) {
  for (const int updates : {1, 2}) {
    const auto run = [&](bool is_exact) {
      const auto group = solo_group("t");
      const MeshGroups ranks(*group);
      TrainerConfig config = reinforce_config(AdvantageType::kReinforcePp);
      config.exact_rollout = is_exact;
      config.optimizer.steps_per_rollout = updates;
      Trainer trainer(std::move(config), ranks);
      std::vector<std::vector<SampleGroup>> rollout;
      for (int u = 0; u < updates; ++u) {
        rollout.push_back(make_groups(3, static_cast<uint32_t>(7 + u)));
        fill_log_probs(trainer, rollout.back());
      }
      return trainer.train(rollout, 0);
    };
    const TrainMetrics exact = run(true), computed = run(false);
    EXPECT_EQ(exact.old_log_probs_ms > 0, false);
    EXPECT_GT(computed.old_log_probs_ms, 0);
    EXPECT_EQ(exact.loss.loss, computed.loss.loss);
    EXPECT_EQ(exact.update.grad_norm, computed.update.grad_norm);
    EXPECT_EQ(updates > 1, exact.loss.ratio_max > 1) << "the second update is off policy";
  }
}

TEST(AlgorithmFlow, RolloutLogProbsMakeTheGapPartOfTheRatio) {
  auto groups = make_groups(3, 5);
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  TrainerConfig config = make_config(kModel, Mode::kQat);
  config.algorithm.use_rollout_logprobs = true;
  Trainer trainer(std::move(config), ranks);
  fill_log_probs(trainer, groups);
  for (SampleGroup& g : groups) {
    for (Sample& sample : g.samples) {
      for (float& value : sample.log_probs) value -= 0.1f;
    }
  }
  const TrainMetrics metrics = trainer.train(std::vector<std::vector<SampleGroup>>{groups}, 0);
  EXPECT_NEAR(metrics.loss.ratio_mean, std::exp(0.1), 1e-5);
  EXPECT_NEAR(metrics.loss.ratio_max, std::exp(0.1), 1e-5);
}

TEST(AlgorithmFlow, TheKlIsInTheRewardAndNotInTheLoss) {
  auto groups = make_groups(4, 6);
  for (SampleGroup& group : groups) {
    for (Sample& sample : group.samples) sample.reward = 1.0;
  }
  // Equal rewards: what is learned is the KL alone.
  TrainerConfig config = reinforce_config(AdvantageType::kReinforcePpBaseline);
  config.algorithm.loss.kl_estimator = KlEstimator::kK1;
  const TrainMetrics with = one_step(config, groups);
  EXPECT_TRUE(with.has_reference);
  EXPECT_GT(with.update.grad_norm, 0);
  EXPECT_NE(with.kl_reference_k1, 0);
  config.algorithm.advantage.kl_reward_coef = 0;
  EXPECT_EQ(one_step(config, groups).update.grad_norm, 0);
}

TEST(AlgorithmFlow, TheEntropyBonusRaisesTheEntropy) {
  const auto entropy_after = [](double coef) {
    const auto group = solo_group("t");
    const MeshGroups ranks(*group);
    TrainerConfig config = make_config(kModel, Mode::kBf16);
    config.algorithm.loss.kl_coef = 0.0;
    config.algorithm.loss.entropy_coef = coef;
    Trainer trainer(std::move(config), ranks);
    auto groups = make_groups(4, 8);
    fill_log_probs(trainer, groups);
    TrainMetrics metrics;
    for (int step = 0; step < 3; ++step) {
      metrics = trainer.train(std::vector<std::vector<SampleGroup>>{groups}, step);
    }
    return metrics.entropy;
  };
  EXPECT_GT(entropy_after(1.0), entropy_after(0.0));
}

}  // namespace
}  // namespace nibble
