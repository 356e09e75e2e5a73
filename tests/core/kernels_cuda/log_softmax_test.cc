// CUDA log-softmax, its gradient and sampling against the CPU's.
#include "core/kernels_cuda/log_softmax.h"

#include "tests/core/kernels_cuda/gpu_test.h"

namespace nibble::kernels {
namespace {

class LogSoftmaxCuda : public GpuTest {};

TEST_F(LogSoftmaxCuda, StatisticsTargetsAndGradientsAreTheCpus) {
  for (const auto& [rows, vocab] : {std::pair{1, 7}, {5, 1000}, {3, 49152}, {2, 151643}}) {
    const float temperature = 0.7f;
    const auto logits = random_floats(rows * vocab, 1, 3.0f);
    const auto dlogprob = random_floats(rows, 2), dentropy = random_floats(rows, 3);
    std::vector<int32_t> target;
    for (int r = 0; r < rows; ++r) target.push_back(r * 31 % vocab);
    std::vector<RowStats> stats(static_cast<size_t>(rows));
    log_softmax_stats(logits.data(), rows, vocab, temperature, stats.data(), serial);
    const auto d_logits = on_device(logits), d_dlogprob = on_device(dlogprob);
    const auto d_target = on_device(target);
    const auto d_dentropy = on_device(dentropy);
    const auto d_stats = poisoned<RowStats>(rows);
    const auto log_prob = poisoned<float>(rows), entropy = poisoned<float>(rows);
    const auto dlogits = poisoned<uint16_t>(rows * vocab);
    cuda::log_softmax_stats(d_logits.data(), rows, vocab, temperature, d_stats.data(), nullptr);
    cuda::target_log_probs(d_logits.data(), d_stats.data(), d_target.data(), rows, vocab,
                           temperature, log_prob.data(), entropy.data(), nullptr);
    const auto got_log_prob = on_host(log_prob), got_entropy = on_host(entropy);
    for (size_t r = 0; r < stats.size(); ++r) {
      const auto at = r * static_cast<size_t>(vocab) + static_cast<size_t>(target[r]);
      EXPECT_NEAR(got_log_prob[r], stats[r].log_prob(logits[at], temperature), 1e-4);
      EXPECT_NEAR(got_entropy[r], stats[r].entropy, 1e-3);
    }
    for (const bool with_entropy : {false, true}) {
      cuda::log_prob_backward(d_logits.data(), d_stats.data(), d_target.data(),
                              {d_dlogprob.data(), with_entropy ? d_dentropy.data() : nullptr}, rows,
                              vocab, temperature, dlogits.data(), nullptr);
      std::vector<float> want = logits;
      log_prob_backward(want.data(), stats.data(), target.data(),
                        {dlogprob.data(), with_entropy ? dentropy.data() : nullptr}, rows, vocab,
                        temperature, serial);
      EXPECT_LT(relative_error(widened(on_host(dlogits)), want), kOneRounding);
    }
  }
}

TEST_F(LogSoftmaxCuda, DrawsTheCpusTokens) {
  // The two sides round the cumulative weights differently: a draw may differ where the uniform
  // lies within that rounding of an edge, which a few in thousands do.
  const int64_t rows = 4, vocab = 5003;
  const auto logits = random_floats(rows * vocab, 1, 2.0f);
  const auto d_logits = on_device(logits);
  const std::vector<SamplingParams> samplings = {
      {1.0f, 0, 1.0f},  {0.7f, 0, 1.0f}, {1.0f, 20, 1.0f}, {1.0f, 0, 0.6f},
      {1.3f, 50, 0.8f}, {0.0f, 0, 1.0f}, {1.0f, 1, 1.0f}};
  std::vector<cuda::DrawSpec> draws;
  std::vector<int32_t> want;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> unit(0.0, 1.0);
  for (int i = 0; i < 2000; ++i) {
    const SamplingParams& s = samplings[static_cast<size_t>(i) % samplings.size()];
    const auto row = static_cast<int32_t>(i % rows);
    const double uniform = i < 14 ? 0.0 : i < 28 ? 0x1.fffffep-1 : unit(random);
    draws.push_back({row, s.temperature, s.top_k, s.top_p, uniform});
    want.push_back(sample_token(logits.data() + row * vocab, vocab, s, uniform));
  }
  const auto d_draws = on_device(draws);
  const auto results = poisoned<cuda::DrawResult>(std::ssize(draws));
  cuda::sample(d_logits.data(), vocab, d_draws.data(), std::ssize(draws), results.data(), nullptr);
  const auto got = on_host(results);
  int different = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    different += got[i].token != want[i] ? 1 : 0;
    const float temperature = draws[i].temperature == 0.0f ? 1.0f : draws[i].temperature;
    RowStats stats;
    const float* row = logits.data() + draws[i].row * vocab;
    log_softmax_stats(row, 1, vocab, temperature, &stats, serial);
    ASSERT_GE(got[i].token, 0);
    ASSERT_LT(got[i].token, vocab);
    EXPECT_NEAR(got[i].log_prob, stats.log_prob(row[got[i].token], temperature), 1e-4);
  }
  EXPECT_LE(different, 10);
}

TEST_F(LogSoftmaxCuda, ARowWithoutNumbersDrawsTokenZeroAndSaysSo) {
  const int64_t vocab = 5003;
  const std::vector<float> logits(static_cast<size_t>(vocab), std::nanf(""));
  const auto d_logits = on_device(logits);
  const std::vector<cuda::DrawSpec> draws = {
      {0, 0.0f, 0, 1.0f, 0.5}, {0, 1.0f, 0, 1.0f, 0.5}, {0, 1.0f, 20, 0.9f, 0.5}};
  const auto d_draws = on_device(draws);
  const auto results = poisoned<cuda::DrawResult>(std::ssize(draws));
  cuda::sample(d_logits.data(), vocab, d_draws.data(), std::ssize(draws), results.data(), nullptr);
  for (const cuda::DrawResult& result : on_host(results)) {
    EXPECT_EQ(result.token, 0);
    EXPECT_TRUE(std::isnan(result.log_prob));
  }
}

}  // namespace
}  // namespace nibble::kernels
