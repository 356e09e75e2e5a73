// Every kernel gives the same bits on every instruction set and for every split into threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "core/kernels/isa.h"
#include "core/quant/rows.h"
#include "tests/core/kernels/random_data.h"
#include "tests/core/kernels/thread_parallel.h"

namespace nibble::kernels {
namespace {

using Floats = std::vector<float>;
using Run = std::function<Floats(const IsaTable&, const Parallel&)>;

void expect_same_everywhere(const std::string& what, const Run& run) {
  const Floats want = run(isa_table(Isa::kScalar), Serial());
  for (const float value : want) ASSERT_TRUE(std::isfinite(value)) << what;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_is_available(isa)) continue;
    for (const int threads : {1, 2, 5}) {
      const Floats got = run(isa_table(isa), ThreadParallel(threads));
      ASSERT_EQ(got.size(), want.size());
      EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * 4), 0)
          << what << " " << isa_name(isa) << " threads " << threads;
    }
  }
}

TEST(IsaEquality, Norms) {
  const auto x = random_floats(70 * 112, 1);
  const auto dy = random_floats(70 * 112, 2);
  const auto w = random_bf16(112, 3);
  const NormShape shape{70, 112, 1e-5f};
  expect_same_everywhere("rms_norm", [&](const IsaTable& isa, const Parallel& parallel) {
    Floats y(x.size());
    isa.rms_norm(x.data(), w.data(), shape, y.data(), parallel);
    return y;
  });
  expect_same_everywhere("rms_norm_backward", [&](const IsaTable& isa, const Parallel& parallel) {
    Floats out(x.size() + 112, 0.5f);
    isa.rms_norm_backward(x.data(), w.data(), dy.data(), shape, out.data(), out.data() + x.size(),
                          parallel);
    return out;
  });
}

TEST(IsaEquality, RopeAndActivations) {
  const auto x = random_floats(9 * 3 * 48, 4);
  const auto table = random_floats(2 * 40 * 24, 5);
  const std::vector<int32_t> position = {0, 39, 3, 4, 5, 17, 8, 9, 1};
  const RopeTable rope{table.data(), table.data() + 40 * 24, 24, 40};
  for (const RopeDirection direction : {RopeDirection::kForward, RopeDirection::kBackward}) {
    expect_same_everywhere("rope", [&](const IsaTable& isa, const Parallel& parallel) {
      Floats y = x;
      isa.rope(y.data(), position.data(), 9, 3, rope, direction, parallel);
      return y;
    });
  }
  const auto up = random_floats(x.size(), 6);
  expect_same_everywhere("silu_mul", [&](const IsaTable& isa, const Parallel& parallel) {
    Floats y(x.size() - 3);
    isa.silu_mul(x.data(), up.data(), static_cast<int64_t>(y.size()), y.data(), parallel);
    return y;
  });
  expect_same_everywhere("silu_mul_backward", [&](const IsaTable& isa, const Parallel& parallel) {
    Floats y(2 * x.size());
    isa.silu_mul_backward(x.data(), up.data(), up.data(), static_cast<int64_t>(x.size()), y.data(),
                          y.data() + x.size(), parallel);
    return y;
  });
}

// Two sequences that share a prompt of five rows.
struct Keys {
  std::vector<int32_t> rows = {0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 7};
  std::vector<int64_t> first = {0, 0, 0, 0, 0, 0, 0, 7};
  std::vector<int32_t> count = {1, 2, 3, 4, 5, 6, 7, 6};
  KeyIndex index() const { return {rows.data(), first.data(), count.data()}; }
};

TEST(IsaEquality, AttentionForwardAndBackward) {
  const Keys keys;
  const AttentionShape shape{8, 4, 2, 48, 0.2f};
  const auto q = random_floats(8 * 4 * 48, 7);
  const auto k = random_floats(8 * 2 * 48, 8);
  const auto v = random_floats(8 * 2 * 48, 9);
  const auto dout = random_floats(q.size(), 10);
  expect_same_everywhere("attention", [&](const IsaTable& isa, const Parallel& parallel) {
    Floats out(q.size() + 32);
    isa.attention(q.data(), k.data(), v.data(), keys.index(), shape, out.data(),
                  out.data() + q.size(), parallel);
    return out;
  });
  expect_same_everywhere("attention_backward", [&](const IsaTable& isa, const Parallel& parallel) {
    Floats out(q.size());
    Floats lse(32);
    isa.attention(q.data(), k.data(), v.data(), keys.index(), shape, out.data(), lse.data(),
                  parallel);
    Floats grads(q.size() + 2 * k.size());
    isa.attention_backward(
        {q.data(), k.data(), v.data(), out.data(), lse.data(), dout.data(), grads.data(),
         grads.data() + q.size(), grads.data() + q.size() + k.size(), 8},
        keys.index(), shape, parallel);
    return grads;
  });
}

TEST(IsaEquality, RouterAndExperts) {
  const RouterShape shape{33, 21, 4, true};
  const auto logits = random_floats(33 * 21, 11);
  const auto dweight = random_floats(33 * 4, 12);
  expect_same_everywhere("router", [&](const IsaTable& isa, const Parallel& parallel) {
    Floats prob(33 * 21), weight(33 * 4), dlogits(33 * 21);
    std::vector<int32_t> expert(33 * 4);
    isa.router_top_k(logits.data(), shape, RouterMode::kChoose, prob.data(), expert.data(),
                     weight.data(), parallel);
    isa.router_backward(prob.data(), expert.data(), dweight.data(), shape, dlogits.data(),
                        parallel);
    Floats all = prob;
    all.insert(all.end(), weight.begin(), weight.end());
    all.insert(all.end(), dlogits.begin(), dlogits.end());
    for (const int32_t e : expert) all.push_back(static_cast<float>(e));
    return all;
  });
}

TEST(IsaEquality, LogSoftmaxAndItsGradient) {
  const auto logits = random_floats(5 * 1003, 13, 4.0f);
  const std::vector<int32_t> target = {0, 1002, 17, 500, 501};
  const auto g = random_floats(5, 14), e = random_floats(5, 15);
  expect_same_everywhere("log_softmax", [&](const IsaTable& isa, const Parallel& parallel) {
    std::vector<RowStats> stats(5);
    isa.log_softmax_stats(logits.data(), 5, 1003, 0.7f, stats.data(), parallel);
    Floats out = logits;
    isa.log_prob_backward(out.data(), stats.data(), target.data(), {g.data()}, 5, 1003, 0.7f,
                          parallel);
    Floats with_entropy = logits;
    isa.log_prob_backward(with_entropy.data(), stats.data(), target.data(), {g.data(), e.data()}, 5,
                          1003, 0.7f, parallel);
    out.insert(out.end(), with_entropy.begin(), with_entropy.end());
    for (const RowStats& s : stats) out.insert(out.end(), {s.max, s.log_sum, s.entropy});
    return out;
  });
  for (const double uniform : {0.0, 0.3, 0.77, 0.999999}) {
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (!isa_is_available(isa)) continue;
      EXPECT_EQ(isa_table(isa).sample_row(logits.data(), 1003, 0.7f, -INFINITY, uniform),
                isa_table(Isa::kScalar).sample_row(logits.data(), 1003, 0.7f, -INFINITY, uniform));
    }
  }
}

TEST(LogSoftmax, MatchesDoublePrecision) {
  const auto logits = random_floats(1003, 15, 4.0f);
  double sum = 0.0;
  for (const float z : logits) sum += std::exp(static_cast<double>(z) / 0.7);
  RowStats stats;
  log_softmax_stats(logits.data(), 1, 1003, 0.7f, &stats, Serial());
  EXPECT_NEAR(stats.max + stats.log_sum, std::log(sum), 1e-5);
  double entropy = 0.0;
  for (const float z : logits) {
    const double logp = static_cast<double>(z) / 0.7 - std::log(sum);
    entropy -= std::exp(logp) * logp;
  }
  EXPECT_NEAR(stats.entropy, entropy, 1e-5);
}

TEST(QuantizePack, IsTheReferenceBitForBitOnEveryIsaWithAllMantissas) {
  for (const int64_t group : {32, 64, 128}) {
    const quant::GroupShape shape{37, 3 * group, group};
    Floats master = random_floats(shape.rows * shape.cols, 16, 0.05f);
    for (size_t i = 0; i < master.size(); i += 7)
      master[i] = std::ldexp(master[i], -static_cast<int>(i % 140));
    for (size_t i = 0; i < static_cast<size_t>(group); ++i) master[i] = 0.0f;
    std::vector<uint16_t> bf16;
    for (const float w : master) bf16.push_back(quant::float_to_bf16(w));
    std::vector<uint16_t> scale(static_cast<size_t>(shape.rows * 3));
    std::vector<int8_t> code(master.size());
    ASSERT_FALSE(
        quant::quantize_rows(bf16.data(), shape, quant::Grid::kSym7, scale.data(), code.data()));
    std::vector<uint32_t> words(master.size() / 8);
    quant::pack_rows(code.data(), shape.rows, shape.cols, 4, words.data());
    for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
      if (!isa_is_available(isa)) continue;
      std::vector<uint32_t> got(words.size());
      std::vector<uint16_t> got_scale(scale.size());
      bool overflow = false;
      EXPECT_EQ(isa_table(isa).quantize_groups(master.data(), group, 0, shape.rows * 3, got.data(),
                                               got_scale.data(), &overflow),
                -1);
      EXPECT_EQ(got, words) << isa_name(isa);
      EXPECT_EQ(got_scale, scale) << isa_name(isa);
    }
  }
}

TEST(QuantizePack, NamesTheFirstBadGroup) {
  const quant::GroupShape shape{4, 64, 32};
  std::vector<uint32_t> words(32);
  std::vector<uint16_t> scale(8);
  for (const auto& [value, kind] :
       {std::pair{std::nanf(""), quant::QuantizeProblem::Kind::kNonFiniteWeight},
        std::pair{INFINITY, quant::QuantizeProblem::Kind::kNonFiniteWeight},
        std::pair{3.3895314e38f, quant::QuantizeProblem::Kind::kOverflow}}) {
    Floats master(256, 0.5f);
    master[2 * 64 + 40] = value;
    master[3 * 64] = NAN;
    const auto problem =
        quantize_pack_int4(master.data(), shape, words.data(), scale.data(), ThreadParallel(3));
    ASSERT_TRUE(problem.has_value());
    EXPECT_EQ(problem->row, 2);
    EXPECT_EQ(problem->group, 1);
    EXPECT_EQ(problem->kind, kind);
  }
}

// Lengths and beginnings that leave a head, a tail or nothing but these, positions on both sides of
// 2^30 where the vector kernels change their tables (hash_cpu.h), and of 2^64.
template <typename Element, typename Kernel>
void expect_reference_hashes(const std::vector<Element>& values, Kernel IsaTable::*kernel) {
  constexpr uint64_t kOffset = 0x9e3779b97f4a7c15ull;  // hash_element's
  const auto size = static_cast<int64_t>(values.size());
  std::mt19937_64 engine(23);
  for (int draw = 0; draw < 400; ++draw) {
    const int64_t most = draw % 2 == 0 ? 70 : size;
    const auto begin = static_cast<int64_t>(engine() % static_cast<uint64_t>(size));
    const int64_t end = std::min(size, begin + static_cast<int64_t>(engine() % (most + 1)));
    const uint64_t turn = ((engine() % 8) << 30) - kOffset;
    const uint64_t first = draw % 3 == 0 ? engine() >> 20 : turn - engine() % 3000;
    quant::ContentHash want;
    for (int64_t i = begin; i < end; ++i) {
      want += quant::hash_element(values[static_cast<size_t>(i)], first + static_cast<uint64_t>(i));
    }
    for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
      if (!isa_is_available(isa)) continue;
      quant::ContentHash got;
      (isa_table(isa).*kernel)(values.data(), begin, end, first, &got.low, &got.high);
      ASSERT_EQ(got, want) << isa_name(isa) << " [" << begin << ", " << end << ") of " << first;
    }
  }
}

TEST(Hash, OfWordsIsTheSumOfElementsOnEveryIsa) {
  std::mt19937 engine(19);
  std::vector<uint32_t> words(3000);
  for (uint32_t& word : words) word = engine();
  expect_reference_hashes(words, &IsaTable::hash_words);
}

TEST(Hash, OfBf16IsTheSumOfElementsOnEveryIsa) {
  std::mt19937 engine(20);
  std::vector<uint16_t> values(3000);
  for (uint16_t& value : values) value = static_cast<uint16_t>(engine());
  expect_reference_hashes(values, &IsaTable::hash_bf16);
}

TEST(Hash, ParallelEqualsReference) {
  const auto values = random_bf16(100'003, 17);
  EXPECT_EQ(hash_bf16(values.data(), 100'003, 5, ThreadParallel(3)),
            quant::hash_bf16(values.data(), 100'003, 5));
}

}  // namespace
}  // namespace nibble::kernels
