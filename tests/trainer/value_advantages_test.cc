// Advantages and returns of a rollout by a critic's values, against sums over what follows a token.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/trainer/tiny_trainer.h"
#include "trainer/scoring.h"
#include "trainer/update_work.h"

namespace nibble {
namespace {

constexpr double kCoef = 0.1;

AlgorithmConfig config_of(double gamma, double lambda) {
  AlgorithmConfig config;
  config.advantage.type = AdvantageType::kGae;
  config.advantage.gamma = gamma;
  config.advantage.lambda = lambda;
  config.advantage.kl_reward_coef = kCoef;
  config.loss.kl_estimator = KlEstimator::kK1;
  config.mask_truncated = true;
  return config;
}

// Two updates of several micro-batches with random values and log-probabilities; a sample of each
// group is masked.
std::vector<UpdateWork> make_work(const AlgorithmConfig& config) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<UpdateWork> work(2);
  for (size_t u = 0; u < work.size(); ++u) {
    auto groups = make_groups(3, static_cast<uint32_t>(7 + u));
    for (SampleGroup& group : groups) {
      for (Sample& sample : group.samples) {
        sample.finish_reason = sample.sample_index == 1 ? "length" : "stop";
        sample.reward = normal(random);
      }
    }
    work[u].batches = make_micro_batches(score_groups(groups, config, 100), 20);
    EXPECT_GT(work[u].batches.size(), 1u);
    for (const MicroBatch& batch : work[u].batches) {
      for (auto* lists : {&work[u].old_logp, &work[u].reference, &work[u].values}) {
        auto& list = lists->emplace_back();
        for (size_t i = 0; i < batch.mask.size(); ++i) list.push_back(normal(random));
      }
    }
  }
  return work;
}

struct Want {
  std::vector<double> advantages, returns, values;  // of unmasked tokens, in order
};

// By their definitions, as sums: A_t of (gamma lambda)^l delta_{t+l}.
Want naive(const std::vector<UpdateWork>& work, double gamma, double lambda) {
  Want want;
  for (const UpdateWork& update : work) {
    for (size_t b = 0; b < update.batches.size(); ++b) {
      const MicroBatch& batch = update.batches[b];
      for (size_t s = 0; s + 1 < batch.sample_begin.size(); ++s) {
        const auto begin = static_cast<size_t>(batch.sample_begin[s]);
        const auto end = static_cast<size_t>(batch.sample_begin[s + 1]);
        for (size_t t = begin; t < end; ++t) {
          if (batch.mask[t] == 0) continue;
          double advantage = 0;
          for (size_t i = t; i < end; ++i) {
            const double kl = double{update.old_logp[b][i]} - double{update.reference[b][i]};
            const double score = i + 1 == end ? batch.advantage[begin] : 0;
            const double next = i + 1 == end ? 0 : update.values[b][i + 1];
            const double delta = score - kCoef * kl + gamma * next - update.values[b][i];
            advantage += std::pow(gamma * lambda, static_cast<double>(i - t)) * delta;
          }
          want.advantages.push_back(advantage);
          want.values.push_back(update.values[b][t]);
          want.returns.push_back(advantage + update.values[b][t]);
        }
      }
    }
  }
  return want;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double variance(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += std::pow(value - mean(values), 2);
  return squares / static_cast<double>(values.size() - 1);
}

TEST(ValueAdvantages, AreNormalizedOverTheRolloutAndReturnsAreNot) {
  const auto group = solo_group("t");
  for (const auto& [gamma, lambda] : {std::pair{1.0, 1.0}, {0.97, 0.9}, {1.0, 0.0}}) {
    const AlgorithmConfig config = config_of(gamma, lambda);
    std::vector<UpdateWork> work = make_work(config);
    const Want want = naive(work, gamma, lambda);
    const ValueFigures figures = value_advantages(work, config, *group, true);
    EXPECT_NEAR(figures.mean, mean(want.values), 1e-9);
    std::vector<double> errors;
    for (size_t i = 0; i < want.returns.size(); ++i) {
      errors.push_back(want.returns[i] - want.values[i]);
    }
    EXPECT_NEAR(figures.explained_variance, 1 - variance(errors) / variance(want.returns), 1e-9);
    size_t place = 0;
    for (const UpdateWork& update : work) {
      ASSERT_EQ(update.returns.size(), update.batches.size());
      for (size_t b = 0; b < update.batches.size(); ++b) {
        const MicroBatch& batch = update.batches[b];
        for (size_t i = 0; i < batch.mask.size(); ++i) {
          if (batch.mask[i] == 0) continue;
          EXPECT_NEAR(update.returns[b][i], want.returns[place], 1e-9);
          EXPECT_NEAR(batch.advantage[i],
                      (want.advantages[place] - mean(want.advantages)) /
                          std::sqrt(variance(want.advantages)),
                      1e-5);
          ++place;
        }
      }
    }
    EXPECT_EQ(place, want.returns.size());
  }
}

TEST(ValueAdvantages, ARankWhoseSamplesAnotherHasAddsNothing) {
  const auto group = solo_group("t");
  const AlgorithmConfig config = config_of(1, 1);
  std::vector<UpdateWork> work = make_work(config);
  const ValueFigures figures = value_advantages(work, config, *group, false);
  EXPECT_EQ(figures.mean, 0);
  EXPECT_EQ(figures.explained_variance, 0);
}

}  // namespace
}  // namespace nibble
