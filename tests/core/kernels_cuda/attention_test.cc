// CUDA attention against the CPU's, and the promise that paging and batch do not change a bit.
#include "core/kernels_cuda/attention.h"

#include "core/base/error.h"

#include "tests/core/kernels_cuda/gpu_test.h"

namespace nibble::kernels {
namespace {

// Queries whose keys lie anywhere in an array of rows.
struct Case {
  AttentionShape shape;
  int64_t num_rows = 0;
  std::vector<int32_t> rows;
  std::vector<int64_t> first;
  std::vector<int32_t> count;
  std::vector<uint16_t> q, k, v;
};

Case make_case(int64_t heads, int64_t kv_heads, int64_t head_dim, std::vector<int32_t> counts) {
  Case c;
  const auto tokens = static_cast<int64_t>(counts.size());
  c.shape = {tokens, heads, kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim))};
  c.num_rows = 1501;
  c.count = std::move(counts);
  for (const int32_t n : c.count) {
    c.first.push_back(static_cast<int64_t>(c.rows.size()));
    // A stride prime to the number of rows: every key of a query in a row of its own.
    for (int32_t i = 0; i < n; ++i) {
      c.rows.push_back(static_cast<int32_t>((static_cast<int64_t>(i) * 379 + n) % c.num_rows));
    }
  }
  c.q = random_bf16(tokens * heads * head_dim, 1, 2.0f);
  c.k = random_bf16(c.num_rows * kv_heads * head_dim, 2);
  c.v = random_bf16(c.num_rows * kv_heads * head_dim, 3);
  return c;
}

struct Result {
  std::vector<uint16_t> out;
  std::vector<float> lse;
};

Result run(const Case& c) {
  const auto out = poisoned<uint16_t>(static_cast<int64_t>(c.q.size()));
  const auto lse = poisoned<float>(c.shape.tokens * c.shape.heads);
  const auto rows = on_device(c.rows);
  const auto first = on_device(c.first);
  const auto count = on_device(c.count);
  cuda::attention(on_device(c.q).data(), on_device(c.k).data(), on_device(c.v).data(),
                  {rows.data(), first.data(), count.data()}, c.shape, out.data(), lse.data(),
                  nullptr);
  return {on_host(out), on_host(lse)};
}

class AttentionCuda : public GpuTest {};

TEST_F(AttentionCuda, OutputAndLogSumExpAreTheCpusRoundedOnce) {
  const std::vector<int32_t> counts = {1, 2, 31, 32, 33, 127, 128, 129, 500, 1500};
  for (const auto& [heads, kv_heads, dim] :
       {std::tuple{4, 2, 16}, {4, 4, 32}, {9, 3, 64}, {5, 1, 80}, {16, 2, 96}, {32, 4, 128}}) {
    const Case c = make_case(heads, kv_heads, dim, counts);
    const Result got = run(c);
    std::vector<float> out(c.q.size()), lse(static_cast<size_t>(c.shape.tokens * heads));
    attention(widened(c.q).data(), widened(c.k).data(), widened(c.v).data(),
              {c.rows.data(), c.first.data(), c.count.data()}, c.shape, out.data(), lse.data(),
              serial);
    EXPECT_LT(relative_error(widened(got.out), out), kOneRounding) << heads << " " << dim;
    for (int64_t t = 0; t < c.shape.tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        EXPECT_NEAR(got.lse[static_cast<size_t>(h * c.shape.tokens + t)],
                    lse[static_cast<size_t>(t * heads + h)], 2e-5);
      }
    }
  }
}

TEST_F(AttentionCuda, WhereKeysLieAndWhoElseIsComputedDoNotChangeABit) {
  const Case together = make_case(8, 2, 128, {700, 33, 1, 260});
  const Result all = run(together);
  const int64_t width = 8 * 128, kv_width = 2 * 128;
  for (int64_t t = 0; t < 4; ++t) {
    const auto n = together.count[static_cast<size_t>(t)];
    Case alone = make_case(8, 2, 128, {n});
    alone.q.assign(together.q.begin() + t * width, together.q.begin() + (t + 1) * width);
    // The same keys, moved to rows n - 1, ..., 0.
    for (int32_t i = 0; i < n; ++i) {
      const auto from =
          static_cast<int64_t>(
              together.rows[static_cast<size_t>(together.first[static_cast<size_t>(t)] + i)]) *
          kv_width;
      const int64_t to = (n - 1 - i) * kv_width;
      alone.rows[static_cast<size_t>(i)] = n - 1 - i;
      std::copy_n(together.k.begin() + from, kv_width, alone.k.begin() + to);
      std::copy_n(together.v.begin() + from, kv_width, alone.v.begin() + to);
    }
    const Result one = run(alone);
    EXPECT_TRUE(std::equal(one.out.begin(), one.out.end(), all.out.begin() + t * width));
    for (int64_t h = 0; h < 8; ++h) {
      EXPECT_EQ(one.lse[static_cast<size_t>(h)], all.lse[static_cast<size_t>(h * 4 + t)]);
    }
  }
}

TEST_F(AttentionCuda, TokensThatShareKeysGetTheBitsTheyGetAlone) {
  // Two prompts and two responses to the second one, laid out as a step of an engine and as a
  // training batch are: a token sees its list up to itself.
  for (const auto& [heads, kv_heads, dim] :
       {std::tuple{8, 2, 128}, {6, 2, 64}, {4, 4, 32}, {10, 2, 80}, {16, 1, 16}, {34, 2, 96}}) {
    Case all = make_case(heads, kv_heads, dim, {});
    const auto add_list = [&](int tokens, int shared) {
      const auto first = static_cast<int64_t>(all.rows.size());
      for (int i = 0; i < shared + tokens; ++i) {
        all.rows.push_back((i * 379 + static_cast<int>(first) * (i < shared ? 0 : 7)) %
                           static_cast<int>(all.num_rows));
      }
      for (int i = 0; i < tokens; ++i) {
        all.first.push_back(first);
        all.count.push_back(shared + i + 1);
      }
    };
    add_list(41, 0);
    add_list(170, 0);
    add_list(90, 170);
    add_list(3, 170);
    all.shape.tokens = std::ssize(all.count);
    ASSERT_GT(all.shape.tokens, 256) << "or the launch is the one of few tokens";
    const int64_t width = int64_t{heads} * dim;
    all.q = random_bf16(all.shape.tokens * width, 4, 2.0f);
    const Result together = run(all);
    for (const int64_t t : {0, 1, 40, 41, 100, 210, 211, 212, 263, 300, 301, 303}) {
      Case alone = all;
      alone.shape.tokens = 1;
      alone.first = {all.first[static_cast<size_t>(t)]};
      alone.count = {all.count[static_cast<size_t>(t)]};
      alone.q.assign(all.q.begin() + t * width, all.q.begin() + (t + 1) * width);
      const Result one = run(alone);
      EXPECT_TRUE(std::equal(one.out.begin(), one.out.end(), together.out.begin() + t * width))
          << heads << " " << dim << ", token " << t;
      for (int64_t h = 0; h < heads; ++h) {
        EXPECT_EQ(one.lse[static_cast<size_t>(h)],
                  together.lse[static_cast<size_t>(h * all.shape.tokens + t)]);
      }
    }
  }
}

TEST_F(AttentionCuda, WhatIsNotANumberShowsAndStaysInItsSequence) {
  // Three sequences of two tokens in one tile; the second has a key, the third a value that is not
  // a number. More tokens, so that tiles hold several.
  Case c = make_case(4, 4, 64, {});
  constexpr uint16_t kNan = 0x7fc0;
  for (int sequence = 0; sequence < 200; ++sequence) {
    for (const int32_t n : {1, 2}) {
      c.first.push_back(2 * sequence);
      c.count.push_back(n);
      c.rows.push_back(2 * sequence + n - 1);
    }
  }
  c.shape.tokens = std::ssize(c.count);
  const int64_t width = 4 * 64;
  c.q = random_bf16(c.shape.tokens * width, 4, 2.0f);
  const Result sound = run(c);
  std::fill_n(c.k.begin() + 2 * width, width, kNan);
  std::fill_n(c.v.begin() + 4 * width, width, kNan);
  const Result broken = run(c);
  const auto is_nan = [](uint16_t bits) { return (bits & 0x7fffu) > 0x7f80u; };
  for (int64_t t = 0; t < c.shape.tokens; ++t) {
    const bool spoiled = t >= 2 && t < 6;
    for (int64_t i = t * width; i < (t + 1) * width; ++i) {
      ASSERT_EQ(is_nan(broken.out[static_cast<size_t>(i)]), spoiled) << "token " << t;
      if (spoiled) continue;
      ASSERT_EQ(broken.out[static_cast<size_t>(i)], sound.out[static_cast<size_t>(i)]);
    }
  }
}

TEST_F(AttentionCuda, ATokenWithoutKeysGetsZeros) {
  Case c = make_case(4, 2, 32, {3, 0, 5});
  const Result got = run(c);
  EXPECT_TRUE(std::all_of(got.out.begin() + 128, got.out.begin() + 256,
                          [](uint16_t bits) { return bits == 0; }));
}

TEST_F(AttentionCuda, RefusesAHeadSizeItDoesNotHave) {
  Case c = make_case(4, 2, 48, {3});
  EXPECT_THROW(run(c), Error);
}

}  // namespace
}  // namespace nibble::kernels
