#include "weight_sync/hash_batch.h"

#include <gtest/gtest.h>

#include <numeric>

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

TEST(HashBatch, AnyCutAndAnySizeOfABatchGiveTheTensorsHashes) {
  std::vector<uint32_t> words(1000);
  std::iota(words.begin(), words.end(), 0xfffffff0u);
  std::vector<uint16_t> values(777);
  std::iota(values.begin(), values.end(), uint16_t{0xff00});
  const StoredTensor packed{"packed", StoredKind::kWords, 0, 10, 100};
  const StoredTensor plain{"plain", StoredKind::kBf16, 1, 7, 111};
  const kernels::Serial serial;
  const kernels::CpuWeightKernels kernels(serial);
  for (const int64_t flush_bytes : {int64_t{1}, int64_t{500}, int64_t{1} << 40}) {
    HashBatch batch(kernels, flush_bytes);
    quant::ContentHash of_words, of_values;
    for (int64_t i = 0; i < 10; ++i) {
      batch.add(packed, i * 100, std::as_bytes(std::span(words).subspan(i * 100, 100)), &of_words);
      if (i >= 7) continue;
      batch.add(plain, i * 111, std::as_bytes(std::span(values).subspan(i * 111, 111)), &of_values);
    }
    // A batch of one byte is hashed at once; one that is never full, at the end.
    EXPECT_EQ(of_words == quant::ContentHash{}, flush_bytes > 8000);
    batch.flush();
    EXPECT_EQ(of_words, hash_of(std::span<const uint32_t>(words)));
    EXPECT_EQ(of_values, hash_of(std::span<const uint16_t>(values)));
  }
}

}  // namespace
}  // namespace nibble
