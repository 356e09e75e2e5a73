#include "weight_sync/weight_readers.h"

#include <gtest/gtest.h>

#include <cstring>

#include "proto/nibble.pb.h"
#include "tests/weight_sync/sync_world.h"
#include "weight_sync/weight_stream_codec.h"

namespace nibble {
namespace {

ErrorCode code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorCode::kInternal;
}

// A worker of two senders that serves version 1.
class WeightReadersTest : public ::testing::Test {
 protected:
  WeightReadersTest()
      : model("dense_untied"),
        world(model, {2}),
        receiver(world.receiver()),
        readers(manifest(), 2) {
    serve(1);
  }
  void serve(int64_t version) {
    world.publish(version);
    readers.end_before(receiver->served().version);  // as the service does at RESERVE
    sync_once(world, *receiver, world.transaction(version));
  }
  const Manifest& manifest() const { return receiver->manifest(); }
  std::vector<v1::WeightPart> parts_of(WeightReader& reader) const {
    std::vector<v1::WeightPart> parts;
    stream_weights({"job", "{}"}, manifest(), reader, [&](const v1::WeightPart& part) {
      parts.push_back(part);
      return true;
    });
    return parts;
  }

  const SyncModel model;
  SyncWorld world;
  std::unique_ptr<WeightReceiver> receiver;
  WeightReaders readers;
};

TEST_F(WeightReadersTest, AStreamHasEveryByteOfTheServedVersionOnceAndInOrder) {
  const auto reader = readers.open(receiver->served(), 0);
  const auto parts = parts_of(*reader);
  ASSERT_TRUE(parts[0].has_header());
  EXPECT_EQ(parts[0].header().version(), 1);
  EXPECT_EQ(parts[0].header().manifest_text(), manifest_text(manifest()));
  const auto tensors = replica_tensors(manifest(), *receiver->served().weights);
  int64_t tensor = 0;
  int64_t offset = 0;
  for (size_t i = 1; i < parts.size(); ++i) {
    const v1::WeightChunk& chunk = parts[i].chunk();
    if (offset == manifest().at(tensor).bytes()) {
      ++tensor;
      offset = 0;
    }
    ASSERT_EQ(chunk.tensor(), tensor);
    ASSERT_EQ(chunk.offset(), offset);
    ASSERT_LE(chunk.data().size(), static_cast<size_t>(kWeightChunkBytes));
    const auto& bytes = tensors[static_cast<size_t>(tensor)].bytes;
    ASSERT_EQ(std::memcmp(bytes.data() + offset, chunk.data().data(), chunk.data().size()), 0);
    offset += static_cast<int64_t>(chunk.data().size());
  }
  EXPECT_EQ(tensor, manifest().size() - 1);
  EXPECT_EQ(offset, manifest().at(tensor).bytes());
}

TEST_F(WeightReadersTest, TheHashesAreThoseOfTheTrainersWholeTensors) {
  serve(2);
  const auto reader = readers.open(receiver->served(), 1);
  EXPECT_EQ(reader->tensor_hashes(), content_hashes(manifest(), *model.version(2), world.kernels));
}

TEST_F(WeightReadersTest, ASlowReaderKeepsNoBufferThatThePublicationAfterTheNextNeeds) {
  const auto reader = readers.open(receiver->served(), 0);
  std::vector<std::byte> bytes(2);
  serve(2);
  reader->copy(0, 0, bytes);  // version 1 can still be read
  serve(3);                   // takes version 1's buffer; without end_before() it would be refused
  EXPECT_EQ(receiver->status().num_buffers, 2);
  EXPECT_EQ(code_of([&] { reader->copy(0, 0, bytes); }), ErrorCode::kUnavailable);
}

TEST_F(WeightReadersTest, AVersionThatHasGivenWayIsNotLentAgain) {
  const ServedWeights old = receiver->served();
  readers.end_before(2);
  EXPECT_EQ(code_of([&] { readers.open(old, 0); }), ErrorCode::kUnavailable);
}

TEST_F(WeightReadersTest, WhatMayNotBeReadIsRefused) {
  EXPECT_EQ(code_of([&] { readers.open(receiver->served(), 1); }), ErrorCode::kFailedPrecondition);
  EXPECT_EQ(code_of([&] { readers.open({}, 0); }), ErrorCode::kFailedPrecondition) << "stale";
  EXPECT_EQ(code_of([&] { readers.open({}, -1); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { readers.open(receiver->served(), -1); }), ErrorCode::kInvalidArgument);
  WeightReaders none(manifest(), 0);
  EXPECT_EQ(code_of([&] { none.open(receiver->served(), 0); }), ErrorCode::kFailedPrecondition);
}

TEST_F(WeightReadersTest, NoMoreReadAtOnceThanTheLimitAndAPlaceComesBack) {
  auto first = readers.open(receiver->served(), 0);
  const auto second = readers.open(receiver->served(), 0);
  EXPECT_EQ(code_of([&] { readers.open(receiver->served(), 0); }), ErrorCode::kResourceExhausted);
  first.reset();
  EXPECT_NE(readers.open(receiver->served(), 0), nullptr);
}

TEST_F(WeightReadersTest, AReaderThatHasLostItsLoanIsWokenAndHoldsNoPlace) {
  const auto first = readers.open(receiver->served(), 0),
             second = readers.open(receiver->served(), 0);
  int woken = 0;
  first->on_loan_end([&] { ++woken; });
  serve(2);
  serve(3);  // at whose RESERVE the loans of version 1 end
  EXPECT_EQ(woken, 1);
  EXPECT_FALSE(first->has_loan());
  const auto third = readers.open(receiver->served(), 0),
             fourth = readers.open(receiver->served(), 0);
  EXPECT_TRUE(third->has_loan() && fourth->has_loan());
  second->on_loan_end([&] { ++woken; });  // too late to wait: woken at once
  EXPECT_EQ(woken, 2);
}

TEST_F(WeightReadersTest, AStreamEndsWhenNobodyListens) {
  const auto reader = readers.open(receiver->served(), 0);
  int left = 3;
  EXPECT_EQ(code_of([&] {
              stream_weights({"job", "{}"}, manifest(), *reader,
                             [&](const v1::WeightPart&) { return --left > 0; });
            }),
            ErrorCode::kCancelled);
  EXPECT_EQ(left, 0);
}

}  // namespace
}  // namespace nibble
