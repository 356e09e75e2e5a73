#include "weight_sync/hash_batch.h"

#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "core/base/fail.h"
#include "core/kernels/parallel.h"
#include "core/kernels/weight_kernels.h"

namespace nibble {
namespace {

template <typename Element>
quant::ContentHash hash_of(std::span<const Element> values) {
  quant::ContentHash hash;
  for (size_t i = 0; i < values.size(); ++i) hash += quant::hash_element(values[i], i);
  return hash;
}

class HashBatchTest : public ::testing::Test {
 protected:
  const kernels::Serial serial{};
  const kernels::CpuWeightKernels kernels{serial};
};

TEST_F(HashBatchTest, AnyCutAndAnySizeOfABatchGiveTheTensorsHashes) {
  constexpr int64_t kRows = 40, kWords = 100'000, kValues = 7'777;  // 16 MB of words
  std::vector<uint32_t> words(kRows * kWords);
  std::iota(words.begin(), words.end(), 0xfffffff0u);
  std::vector<uint16_t> values(kRows * kValues);
  std::iota(values.begin(), values.end(), uint16_t{0xff00});
  const StoredTensor packed{"packed", StoredKind::kWords, 0, kRows, kWords};
  const StoredTensor plain{"plain", StoredKind::kBf16, 1, kRows, kValues};
  const auto want_words = hash_of(std::span<const uint32_t>(words));
  const auto want_values = hash_of(std::span<const uint16_t>(values));
  for (const int64_t batch_bytes : {int64_t{1}, int64_t{3} << 20, int64_t{1} << 40}) {
    for (int round = 0; round < 5; ++round) {
      HashBatch batch(kernels, batch_bytes);
      quant::ContentHash of_words, of_values;
      for (int64_t i = 0; i < kRows; ++i) {
        batch.add(packed, i * kWords, std::as_bytes(std::span(words).subspan(i * kWords, kWords)),
                  &of_words);
        batch.add(plain, i * kValues,
                  std::as_bytes(std::span(values).subspan(i * kValues, kValues)), &of_values);
        EXPECT_LE(batch.num_hashed(), batch.num_added());
      }
      EXPECT_EQ(batch.num_added(), 2 * kRows);
      batch.flush();
      EXPECT_EQ(batch.num_hashed(), 2 * kRows);
      EXPECT_EQ(of_words, want_words);
      EXPECT_EQ(of_values, want_values);
    }
  }
}

TEST_F(HashBatchTest, FullBatchesAreHashedWithoutBeingAskedForAndOthersNot) {
  std::vector<uint32_t> words(1 << 20);
  const StoredTensor packed{"packed", StoredKind::kWords, 0, 4, 1 << 18};
  const auto row = [&](int64_t r) {
    return std::as_bytes(std::span(words).subspan(r << 18, 1 << 18));
  };
  HashBatch batch(kernels, 1 << 20);
  quant::ContentHash sums[4];
  for (int64_t r = 0; r < 3; ++r) batch.add(packed, r << 18, row(r), &sums[r]);
  while (batch.num_hashed() < 3) std::this_thread::yield();  // or the test never ends
  for (const int64_t r : {0, 1, 2}) EXPECT_NE(sums[r], quant::ContentHash{});
  batch.add(packed, 3 << 18, row(3).first(4), &sums[3]);
  EXPECT_EQ(batch.num_hashed(), 3);
  batch.flush();
  EXPECT_EQ(sums[3], quant::hash_words(words.data() + (3 << 18), 1, 3 << 18));
}

TEST_F(HashBatchTest, WhatAHashThrowsReachesTheCaller) {
  class Broken final : public kernels::CpuWeightKernels {
   public:
    using CpuWeightKernels::CpuWeightKernels;
    std::vector<quant::ContentHash> hash(std::span<const kernels::HashJob>) const override {
      fail(ErrorCode::kInternal, "the device is gone");
    }
  };
  const Broken broken(serial);
  std::vector<uint32_t> words(1 << 20);
  const StoredTensor packed{"packed", StoredKind::kWords, 0, 4, 1 << 18};
  quant::ContentHash sum;
  HashBatch batch(broken, 1 << 20);
  for (int64_t r = 0; r < 4; ++r) {
    batch.add(packed, r << 18, std::as_bytes(std::span(words).subspan(r << 18, 1 << 18)), &sum);
  }
  EXPECT_THROW(batch.flush(), Error);
  HashBatch dropped(broken, 1 << 20);
  dropped.add(packed, 0, std::as_bytes(std::span(words)), &sum);
}

}  // namespace
}  // namespace nibble
