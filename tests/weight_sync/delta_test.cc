#include "weight_sync/delta.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>
#include <set>

#include "core/base/error.h"
#include "tests/weight_sync/random_model.h"

namespace nibble {
namespace {

using Bytes = std::vector<std::byte>;

class Delta : public ::testing::Test {
 protected:
  Bytes random_bytes(size_t count) {
    Bytes bytes(count);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
  }
  // Changes about `share` of the elements.
  Bytes changed(StoredKind kind, Bytes bytes, double share) {
    const size_t element = kind == StoredKind::kWords ? 4 : 2;
    std::bernoulli_distribution hit(share);
    for (size_t at = 0; at < bytes.size(); at += element) {
      if (!hit(random)) continue;
      const size_t byte = at + random() % element;
      bytes[byte] ^= static_cast<std::byte>(1 + random() % 255);
    }
    return bytes;
  }
  std::mt19937 random{7};
};

TEST_F(Delta, ListsBringTheBaseToTheNextVersion) {
  for (const StoredKind kind : {StoredKind::kWords, StoredKind::kScale, StoredKind::kBf16}) {
    for (const size_t count : {4, 64, 4096, 4100, 100'000}) {
      for (const double share : {0.0, 1e-4, 0.01, 0.1}) {
        const Bytes base = random_bytes(count), next = changed(kind, base, share);
        const auto list = encode_delta(kind, base, next);
        if (!list) {
          EXPECT_GE(share, 0.1) << "whole slices are for many changes, or very small slices";
          continue;
        }
        EXPECT_LT(list->size(), count);
        EXPECT_EQ(list->empty(), base == next);
        Bytes target = base;
        apply_delta(kind, *list, target);
        EXPECT_EQ(target, next);
      }
    }
  }
}

TEST_F(Delta, AChangedCodeTakesAboutThreeBytesAndAChangedValueTwoOrThree) {
  const size_t count = 1 << 20;
  Bytes base(count), next(count);
  for (int i = 0; i < 1000; ++i) next[random() % count] ^= static_cast<std::byte>(1 << 4);
  EXPECT_LT(encode_delta(StoredKind::kWords, base, next)->size(), 3001u);
  EXPECT_LT(encode_delta(StoredKind::kBf16, base, next)->size(), 4001u);
}

TEST_F(Delta, ManyChangesAreNotAList) {
  const Bytes base = random_bytes(4096), next = random_bytes(4096);
  EXPECT_FALSE(encode_delta(StoredKind::kWords, base, next));
  EXPECT_FALSE(encode_delta(StoredKind::kBf16, base, next));
}

TEST_F(Delta, DamagedListsAreRefusedOrStayInside) {
  for (const StoredKind kind : {StoredKind::kWords, StoredKind::kBf16}) {
    const Bytes base = random_bytes(4096), next = changed(kind, base, 0.02);
    const Bytes list = *encode_delta(kind, base, next);
    int refused = 0;
    for (int i = 0; i < 20'000; ++i) {
      Bytes damaged = list;
      for (int n = 1 + static_cast<int>(random() % 3); n > 0; --n) {
        damaged[random() % damaged.size()] = static_cast<std::byte>(random());
      }
      if (random() % 2 == 0) damaged.resize(random() % damaged.size());
      Bytes target = base;  // out-of-bounds writes are the sanitizers' to find
      try {
        apply_delta(kind, damaged, target);
      } catch (const Error& error) {
        ASSERT_EQ(error.code(), ErrorCode::kDataLoss);
        ++refused;
      }
    }
    EXPECT_GT(refused, 100);
  }
}

TEST_F(Delta, EdgesOfRandomModelsArriveWhole) {
  RandomModels models(3);
  constexpr uint64_t kFlags = uint64_t{3} << 62;
  std::set<uint64_t> flags;
  for (int round = 0; round < 40; ++round) {
    const RandomModel model = models.model();
    Edge edge;
    for (int64_t t = 0; t < model.manifest.size(); ++t) {
      const StoredTensor& tensor = model.manifest.at(t);
      const int64_t begin = models.draw(0, tensor.rows - 1),
                    end = models.draw(begin + 1, tensor.rows);
      edge.slices.push_back(
          {{t, begin, end}, begin * tensor.row_bytes(), end * tensor.row_bytes()});
    }
    std::vector<Bytes> base, next, target;
    for (const PlannedSlice& slice : edge.slices) {
      base.push_back(random_bytes(static_cast<size_t>(slice.bytes())));
      next.push_back(
          changed(model.manifest.at(slice.slice.tensor).kind, base.back(),
                  std::array{0.001, 0.06, 0.2, 0.9}[static_cast<size_t>(models.draw(0, 3))]));
      target.push_back(random_bytes(base.back().size()));
    }
    const std::vector<std::span<const std::byte>> from(base.begin(), base.end());
    const std::vector<std::span<const std::byte>> to(next.begin(), next.end());
    const std::vector<std::span<std::byte>> into(target.begin(), target.end());
    const EncodedEdge encoded = encode_edge(model.manifest, edge, from, to);
    ASSERT_EQ(std::ssize(encoded.header), delta_header_bytes(edge));
    ASSERT_EQ(delta_payload_bytes(edge, encoded.header), std::ssize(encoded.payload));
    decode_edge(model.manifest, edge, encoded.header, encoded.payload, from, into);
    EXPECT_EQ(target, next);
    // In place.
    std::vector<Bytes> own = base;
    const std::vector<std::span<std::byte>> into_own(own.begin(), own.end());
    const std::vector<std::span<const std::byte>> from_own(own.begin(), own.end());
    decode_edge(model.manifest, edge, encoded.header, encoded.payload, from_own, into_own);
    EXPECT_EQ(own, next);
    for (size_t i = 0; i < edge.slices.size(); ++i) {
      uint64_t length = 0;
      std::memcpy(&length, encoded.header.data() + 16 + 8 * i, sizeof length);
      flags.insert(length & kFlags);
    }
    // Damaged lists and frames end in an error or in other bytes, never outside.
    for (int i = 0; i < 50 && !encoded.payload.empty(); ++i) {
      Bytes payload = encoded.payload;
      payload[random() % payload.size()] ^= static_cast<std::byte>(1 + random() % 255);
      try {
        decode_edge(model.manifest, edge, encoded.header, payload, from, into);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
      }
    }
    for (int i = 0; i < 50; ++i) {
      Bytes header = encoded.header;
      header[random() % header.size()] ^= static_cast<std::byte>(1 + random() % 255);
      EXPECT_THROW((void)delta_payload_bytes(edge, header), Error)
          << "any damage of a header shows";
    }
  }
  EXPECT_EQ(flags.size(), 3u) << "a list, a compressed XOR or a whole slice never came up";
}

}  // namespace
}  // namespace nibble
