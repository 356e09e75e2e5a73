#include "weight_sync/delta.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>
#include <set>

#include "core/base/error.h"
#include "tests/weight_sync/random_model.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

using Bytes = std::vector<std::byte>;

// Some pieces at two versions, and memory to bring from one to the other.
struct TwoVersions {
  std::vector<Bytes> base, next, target;
  std::vector<std::span<const std::byte>> from() const { return {base.begin(), base.end()}; }
  std::vector<std::span<const std::byte>> to() const { return {next.begin(), next.end()}; }
  std::vector<std::span<std::byte>> into() { return {target.begin(), target.end()}; }
  std::vector<int64_t> sizes() const { return piece_sizes(ConstPieces(from())); }
};

class Delta : public ::testing::Test {
 protected:
  Bytes random_bytes(size_t count) {
    Bytes bytes(count);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
  }
  // Changes about `share` of the bytes.
  Bytes changed(Bytes bytes, double share) {
    std::bernoulli_distribution hit(share);
    for (std::byte& byte : bytes) {
      if (hit(random)) byte ^= static_cast<std::byte>(1 + random() % 255);
    }
    return bytes;
  }
  void add(TwoVersions& pieces, size_t count, double share) {
    pieces.base.push_back(random_bytes(count));
    pieces.next.push_back(changed(pieces.base.back(), share));
    pieces.target.push_back(random_bytes(count));
  }
  // What a transport does: the sender's payload into the receiver's.
  void deliver(const EncodedDelta& encoded, DeltaDecoder& decoder) {
    const auto to = decoder.payload();
    ASSERT_EQ(to.size(), encoded.payload.size());
    for (size_t i = 0; i < to.size(); ++i) {
      ASSERT_EQ(to[i].size(), encoded.payload[i].size());
      std::memcpy(to[i].data(), encoded.payload[i].data(), to[i].size());
    }
  }
  static int64_t payload_bytes(const EncodedDelta& encoded) {
    int64_t bytes = 0;
    for (const auto part : encoded.payload) bytes += std::ssize(part);
    return bytes;
  }
  std::mt19937 random{7};
  const kernels::Serial serial{};
  const kernels::CpuWeightKernels kernels{serial};
};

TEST_F(Delta, PiecesOfEverySizeAndShareOfChangesArriveWhole) {
  int lists = 0, frames = 0, wholes = 0;
  for (const size_t count : {2, 4, 62, 64, 4096, 4098, 65'534, 65'536, 65'538, 300'000}) {
    for (const double share : {0.0, 1e-4, 0.01, 0.1, 0.25, 0.6, 1.0}) {
      TwoVersions pieces;
      add(pieces, count, share);
      const EncodedDelta encoded = encode_delta(kernels, pieces.from(), pieces.to());
      ASSERT_EQ(std::ssize(encoded.header), delta_header_bytes(pieces.sizes()));
      EXPECT_EQ(encoded.payload.empty(), pieces.base == pieces.next);
      EXPECT_LE(payload_bytes(encoded), static_cast<int64_t>(count));
      (!encoded.lists.empty() ? lists : !encoded.frames[0].empty() ? frames : wholes) += 1;
      DeltaDecoder decoder(kernels, encoded.header, pieces.into());
      deliver(encoded, decoder);
      decoder.apply(pieces.from());
      EXPECT_TRUE(pieces.target == pieces.next) << count << " bytes, " << share;
    }
  }
  EXPECT_GT(lists, 0);
  EXPECT_GT(frames, 0);
  EXPECT_GT(wholes, 0);
}

TEST_F(Delta, AChangedByteTakesThree) {
  TwoVersions pieces;
  pieces.base.emplace_back(1 << 20);
  pieces.next = pieces.base;
  std::set<size_t> places;
  while (places.size() < 1000) places.insert(random() % pieces.next[0].size());
  for (const size_t place : places) pieces.next[0][place] ^= static_cast<std::byte>(1 << 4);
  const EncodedDelta encoded = encode_delta(kernels, pieces.from(), pieces.to());
  EXPECT_EQ(payload_bytes(encoded), 3000);
  EXPECT_LT(encoded.header.size(), 100u);
}

TEST_F(Delta, EdgesOfRandomModelsArriveWholeAlsoInPlaceAndDamageIsRefusedOrStaysInside) {
  RandomModels models(3);
  int refused = 0;
  for (int round = 0; round < 40; ++round) {
    const RandomModel model = models.model();
    TwoVersions pieces;
    for (int64_t t = 0; t < model.manifest.size(); ++t) {
      const StoredTensor& tensor = model.manifest.at(t);
      const int64_t rows = models.draw(1, tensor.rows);
      add(pieces, static_cast<size_t>(rows * tensor.row_bytes()),
          std::array{0.0, 0.001, 0.06, 0.2, 0.9}[static_cast<size_t>(models.draw(0, 4))]);
    }
    const EncodedDelta encoded = encode_delta(kernels, pieces.from(), pieces.to());
    DeltaDecoder decoder(kernels, encoded.header, pieces.into());
    deliver(encoded, decoder);
    decoder.apply(pieces.from());
    EXPECT_TRUE(pieces.target == pieces.next);

    pieces.target = pieces.base;
    DeltaDecoder in_place(kernels, encoded.header, pieces.into());
    deliver(encoded, in_place);
    const auto own = pieces.into();
    in_place.apply(std::vector<std::span<const std::byte>>(own.begin(), own.end()));
    EXPECT_TRUE(pieces.target == pieces.next);

    // Out-of-bounds writes are the sanitizers' to find.
    for (int i = 0; i < 50 && !encoded.payload.empty(); ++i) {
      DeltaDecoder damaged(kernels, encoded.header, pieces.into());
      deliver(encoded, damaged);
      const auto parts = damaged.payload();
      const auto part = parts[random() % parts.size()];
      part[random() % part.size()] ^= static_cast<std::byte>(1 + random() % 255);
      try {
        damaged.apply(pieces.from());  // not all of a frame's bits matter
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
        ++refused;
      }
    }
    for (int i = 0; i < 50; ++i) {
      Bytes header = encoded.header;
      header[random() % header.size()] ^= static_cast<std::byte>(1 + random() % 255);
      EXPECT_THROW(DeltaDecoder(kernels, header, pieces.into()), Error)
          << "any damage of a header shows";
      header.resize(random() % header.size());
      EXPECT_THROW(DeltaDecoder(kernels, header, pieces.into()), Error);
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_F(Delta, HeadersThatLieUnderARightHashAreRefusedOrDescribeWhatFits) {
  TwoVersions pieces;
  for (const double share : {0.0, 0.01, 0.2, 1.0}) add(pieces, 100'000, share);
  const EncodedDelta encoded = encode_delta(kernels, pieces.from(), pieces.to());
  int refused = 0, described = 0;
  for (int i = 0; i < 20'000; ++i) {
    Bytes header = encoded.header;
    const size_t at = 16 + 4 * (random() % ((header.size() - 16) / 4));
    const std::array<uint32_t, 5> values = {0, 0xffffffff, 0xfffffffe, 65'537,
                                            static_cast<uint32_t>(random() % 100'001)};
    const uint32_t value = values[random() % values.size()];
    std::memcpy(header.data() + at, &value, sizeof value);
    quant::ContentHash hash;
    for (size_t word = 0; 16 + 4 * word < header.size(); ++word) {
      uint32_t contents = 0;
      std::memcpy(&contents, header.data() + 16 + 4 * word, sizeof contents);
      hash += quant::hash_element(contents, word);
    }
    std::memcpy(header.data(), &hash, sizeof hash);
    try {
      DeltaDecoder decoder(kernels, header, pieces.into());
      for (const auto part : decoder.payload()) {
        EXPECT_GT(part.size(), 0u);
        EXPECT_LE(part.size(), 400'000u);
        std::memset(part.data(), static_cast<int>(random() % 256), part.size());
      }
      ++described;
      decoder.apply(pieces.from());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(described, 1000);
}

TEST_F(Delta, RangesCoverAnEdgeInOrderAndAreOfALimitedSize) {
  const std::vector<int64_t> sizes = {1,         100 << 20, 100 << 20, 60 << 20,
                                      400 << 20, 2,         256 << 20, 1};
  size_t next = 0;
  for (const PieceRange& range : delta_ranges(sizes, {128 << 20, 1 << 20})) {
    EXPECT_EQ(range.begin, next);
    ASSERT_GT(range.end, range.begin);
    int64_t bytes = 0;
    for (size_t i = range.begin; i < range.end; ++i) bytes += sizes[i];
    EXPECT_TRUE(bytes <= 256 << 20 || range.end == range.begin + 1);
    next = range.end;
  }
  EXPECT_EQ(next, sizes.size());
  EXPECT_TRUE(delta_ranges({}, {}).empty());
}

}  // namespace
}  // namespace nibble
