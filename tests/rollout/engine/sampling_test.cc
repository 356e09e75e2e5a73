// Drawn tokens against exact probabilities, which come from the trainer's executor and a few lines
// of double arithmetic.
#include <gtest/gtest.h>

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <numeric>

#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

constexpr int32_t kVocab = 16;
const std::vector<int32_t> kPrompt = {3, 1, 4, 1, 5};

// log p of every token after the prompt.
std::vector<double> exact_log_probs(RandomModel& model, float temperature) {
  const at::NoGradGuard no_grad;
  SequenceGroup group{kPrompt, {}};
  for (int32_t token = 0; token < kVocab; ++token) group.responses.push_back({token});
  const PackedBatch batch = pack_groups(std::span(&group, 1));
  const auto rope = make_rope_table(model.spec.config.rope, model.spec.config.head_dim, 32);
  const TapeResult result = run_log_probs(model.spec, model.weights, rope, {batch}, temperature,
                                          ActivationType::kFloat32);
  return {result.log_prob.data_ptr<float>(), result.log_prob.data_ptr<float>() + kVocab};
}

// The same after top-k, then top-p of what is left: the smallest set of likeliest tokens whose
// share reaches top_p.
std::vector<double> exact_probabilities(RandomModel& model, const kernels::SamplingParams& params) {
  const std::vector<double> log_prob = exact_log_probs(model, params.temperature);
  std::vector<int> order(kVocab);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    return log_prob[static_cast<size_t>(a)] > log_prob[static_cast<size_t>(b)];
  });
  if (params.top_k > 0) order.resize(static_cast<size_t>(params.top_k));
  double total = 0.0;
  for (const int token : order) total += std::exp(log_prob[static_cast<size_t>(token)]);
  std::vector<double> kept(kVocab, 0.0);
  double sum = 0.0;
  for (const int token : order) {
    if (sum >= static_cast<double>(params.top_p) * total) break;
    kept[static_cast<size_t>(token)] = std::exp(log_prob[static_cast<size_t>(token)]);
    sum += kept[static_cast<size_t>(token)];
  }
  for (double& p : kept) p /= sum;
  return kept;
}

std::vector<Completion> draw_many(RandomModel& model, const kernels::SamplingParams& params,
                                  int count) {
  const kernels::Serial serial;
  EngineConfig config;
  config.max_positions = 16;
  config.kv_slots = 64;
  config.max_requests = count;
  Engine engine(model.spec, config, serial);
  engine.set_weights(borrowed(model.weights), 1);
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < count; ++i) {
    GenerateRequest request;
    request.id = static_cast<uint64_t>(i);
    request.sample_index = static_cast<uint32_t>(i);
    request.prompt_id = 17;
    request.prompt = kPrompt;
    request.max_new_tokens = 1;
    request.sampling = params;
    request.seed = 2026;
    requests.push_back(std::move(request));
  }
  submit_all(engine, std::move(requests));
  EXPECT_EQ(engine.step(), std::ssize(kPrompt)) << "one prompt for all of them";
  return finish_all(engine);
}

class Distribution : public ::testing::TestWithParam<kernels::SamplingParams> {};

TEST_P(Distribution, DrawsFollowTheExactProbabilities) {
  RandomModel model(kVocab);
  constexpr int kDraws = 20000;
  const std::vector<double> p = exact_probabilities(model, GetParam());
  const std::vector<double> log_prob = exact_log_probs(model, GetParam().temperature);
  std::vector<int> seen(kVocab, 0);
  for (const Completion& completion : draw_many(model, GetParam(), kDraws)) {
    const auto token = static_cast<size_t>(completion.tokens.at(0));
    ++seen[token];
    ASSERT_EQ(completion.log_probs.at(0), static_cast<float>(log_prob[token]))
        << "over the full vocabulary";
  }
  double chi_square = 0.0;
  int degrees = -1;
  for (size_t token = 0; token < kVocab; ++token) {
    const double expected = p[token] * kDraws;
    if (expected == 0.0) {
      EXPECT_EQ(seen[token], 0) << "token " << token << " is cut off";
      continue;
    }
    ASSERT_GT(expected, 5.0) << "too rare for the test; choose another model seed";
    chi_square += std::pow(seen[token] - expected, 2) / expected;
    ++degrees;
  }
  ASSERT_GE(degrees, 2);
  // Wilson-Hilferty at p = 1e-4 (normal quantile 3.72).
  const double d = degrees;
  EXPECT_LT(chi_square, d * std::pow(1.0 - 2.0 / (9.0 * d) + 3.72 * std::sqrt(2.0 / (9.0 * d)), 3));
}

INSTANTIATE_TEST_SUITE_P(Params, Distribution,
                         ::testing::Values(kernels::SamplingParams{1.0f, 0, 1.0f},
                                           kernels::SamplingParams{0.7f, 0, 1.0f},
                                           kernels::SamplingParams{2.5f, 0, 1.0f},
                                           kernels::SamplingParams{1.0f, 5, 1.0f},
                                           kernels::SamplingParams{1.0f, 0, 0.8f},
                                           kernels::SamplingParams{1.5f, 8, 0.9f}));

// Three tokens a sample, so that the second is guessed: pairs against p(a) p(b | a).
TEST(Sampling, PairsFollowTheExactProbabilitiesWithGuesses) {
  constexpr int32_t kFew = 4;
  constexpr int kDraws = 20000;
  RandomModel model(kFew);
  const std::vector<int32_t> prompt = {3, 1, 0, 1, 2};
  const at::NoGradGuard no_grad;
  SequenceGroup group{prompt, {}};
  for (int32_t a = 0; a < kFew; ++a) {
    for (int32_t b = 0; b < kFew; ++b) group.responses.push_back({a, b});
  }
  const PackedBatch batch = pack_groups(std::span(&group, 1));
  const auto rope = make_rope_table(model.spec.config.rope, model.spec.config.head_dim, 32);
  const TapeResult exact =
      run_log_probs(model.spec, model.weights, rope, {batch}, 1.0f, ActivationType::kFloat32);
  const float* log_prob = exact.log_prob.data_ptr<float>();  // [pairs, 2]
  const kernels::Serial serial;
  EngineConfig config;
  config.max_positions = 16;
  config.kv_slots = 2048;
  config.max_requests = kDraws;
  config.max_draft_tokens = 4;
  config.drafts_adapt = false;
  Engine engine(model.spec, config, serial);
  engine.set_weights(borrowed(model.weights), 1);
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < kDraws; ++i) {
    GenerateRequest request;
    request.id = static_cast<uint64_t>(i);
    request.sample_index = static_cast<uint32_t>(i);
    request.prompt = prompt;
    request.max_new_tokens = 3;
    request.seed = 11;
    requests.push_back(std::move(request));
  }
  submit_all(engine, std::move(requests));
  std::vector<int> seen(kFew * kFew, 0);
  for (const Completion& done : finish_all(engine)) {
    ++seen[static_cast<size_t>(done.tokens.at(0) * kFew + done.tokens.at(1))];
  }
  EXPECT_GT(engine.stats().guessed_tokens, kDraws / 4);
  EXPECT_GT(engine.stats().accepted_tokens, kDraws / 20);
  double chi_square = 0.0;
  for (size_t pair = 0; pair < seen.size(); ++pair) {
    const double expected =
        kDraws * std::exp(static_cast<double>(log_prob[2 * pair]) + log_prob[2 * pair + 1]);
    ASSERT_GT(expected, 5.0) << "too rare for the test; choose another model seed";
    chi_square += std::pow(seen[pair] - expected, 2) / expected;
  }
  const double d = kFew * kFew - 1;
  EXPECT_LT(chi_square, d * std::pow(1.0 - 2.0 / (9.0 * d) + 3.72 * std::sqrt(2.0 / (9.0 * d)), 3));
}

TEST(Sampling, GreedyTakesTheLikeliestTokenAndScoresItAtTemperatureOne) {
  RandomModel model(kVocab);
  const std::vector<double> log_prob = exact_log_probs(model, 1.0f);
  const auto best = std::max_element(log_prob.begin(), log_prob.end());
  const Completion done = draw_many(model, {0.0f, 0, 1.0f}, 1).at(0);
  EXPECT_EQ(done.tokens.at(0), best - log_prob.begin());
  EXPECT_EQ(done.log_probs.at(0), static_cast<float>(*best));
}

TEST(Sampling, ReportsLogProbsAtTemperatureOneAndTheLikeliestTokens) {
  RandomModel model(kVocab);
  const std::vector<double> log_prob = exact_log_probs(model, 1.0f);
  const kernels::Serial serial;
  EngineConfig config;
  config.max_positions = 16;
  config.kv_slots = 64;
  Engine engine(model.spec, config, serial);
  engine.set_weights(borrowed(model.weights), 1);
  GenerateRequest request;
  request.prompt = kPrompt;
  request.max_new_tokens = 3;
  request.sampling.temperature = 2.0f;
  request.want_plain_log_probs = true;
  request.num_top_log_probs = 5;
  std::vector<size_t> heard;
  request.on_token = [&heard](const Completion& so_far) { heard.push_back(so_far.tokens.size()); };
  submit_one(engine, std::move(request));
  const Completion done = finish_all(engine).at(0);
  EXPECT_EQ(heard, (std::vector<size_t>{1, 2, 3}));
  ASSERT_EQ(done.plain_log_probs.size(), 3u);
  ASSERT_EQ(done.top_log_probs.size(), 3u);
  EXPECT_EQ(done.plain_log_probs[0],
            static_cast<float>(log_prob[static_cast<size_t>(done.tokens[0])]));
  EXPECT_NE(done.plain_log_probs[0], done.log_probs[0]);
  std::vector<int32_t> order(kVocab);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return log_prob[static_cast<size_t>(a)] > log_prob[static_cast<size_t>(b)];
  });
  ASSERT_EQ(done.top_log_probs[0].size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(done.top_log_probs[0][i].token, order[i]);
    EXPECT_EQ(done.top_log_probs[0][i].log_prob,
              static_cast<float>(log_prob[static_cast<size_t>(order[i])]));
  }
}

}  // namespace
}  // namespace nibble
