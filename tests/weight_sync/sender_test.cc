#include "weight_sync/sender.h"

#include <gmock/gmock.h>

#include <functional>

#include "core/base/fail.h"
#include "tests/weight_sync/sync_world.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

// Sends to nobody, and does something else after half of the pieces.
class InterruptedTransport final : public Transport {
 public:
  explicit InterruptedTransport(std::function<void()> between) : between_(std::move(between)) {}
  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes&,
            const SentHandler& on_sent, Deadline) override {
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (i == pieces.size() / 2) between_();
      const int64_t half = std::ssize(pieces[i]) / 8 * 4;
      on_sent({static_cast<int64_t>(i), 0, half});
      on_sent({static_cast<int64_t>(i), half, std::ssize(pieces[i]) - half});
    }
  }
  void receive(std::span<const IncomingEdge>, const TransferSizes&, const ArrivalHandler&,
               Deadline) override {}
  void abort() noexcept override {}

 private:
  std::function<void()> between_;
};

// Of sender 0's move of version 1.
std::vector<quant::ContentHash> hashes_of_move(SyncWorld& world, std::function<void()> between) {
  InterruptedTransport transport(std::move(between));
  const SenderReport report =
      world.senders[0]->move(world.transaction(1), world.plan(), transport, Deadline::after(5s));
  std::vector<quant::ContentHash> hashes;
  for (const SliceHash& slice : report.slices) hashes.push_back(slice.hash);
  return hashes;
}

class SenderTest : public ::testing::Test {
 protected:
  SenderTest() : model("llama_smol"), world(model, {2}), ends(make_local_transports(2)) {}

  std::string refusal(const Transaction& transaction, const SyncPlan& plan, int rank = 0) {
    try {
      const auto r = static_cast<size_t>(rank);
      world.senders[r]->move(transaction, plan, *ends.senders[r], Deadline::after(5s));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kFailedPrecondition);
      return error.what();
    }
    return "moved";
  }

  SyncModel model;
  SyncWorld world;
  LocalTransports ends;
};

TEST_F(SenderTest, RefusesWhatItDoesNotHoldWithoutSendingAByte) {
  world.publish(2);
  EXPECT_THAT(refusal(world.transaction(1), world.plan()), HasSubstr("does not hold version 1"));
  Transaction other = world.transaction(2);
  other.plan_digest.high ^= 1;
  EXPECT_THAT(refusal(other, world.plan()), HasSubstr("computed"));
  EXPECT_THAT(refusal(world.transaction(1, 5), world.plan(5)), HasSubstr("version 1"));
  EXPECT_THAT(refusal(world.transaction(2, 4), world.plan(4)), HasSubstr("epoch 4 is stale"));
  // Rank 1's rows are not rank 0's.
  SyncWorld swapped(model, {2});
  std::swap(swapped.layout.ranks[0], swapped.layout.ranks[1]);
  EXPECT_THAT(refusal(swapped.transaction(2, 5), swapped.plan(5)), HasSubstr("it holds"));
}

TEST_F(SenderTest, VersionsRiseAndRetiredOnesAreLetGo) {
  std::weak_ptr<const std::vector<StoredParameter>> first;
  {
    auto shards = row_shards(model, *model.source, 0, {2});
    first = shards;
    world.senders[0]->publish(1, local_tensors(model, *shards, 0, {2}), shards);
  }
  EXPECT_FALSE(first.expired());
  EXPECT_THROW(publish_shard(model, *world.senders[0], 1, 0, {2}), Error);
  publish_shard(model, *world.senders[0], 2, 0, {2});
  world.senders[0]->retire_before(2);
  EXPECT_TRUE(first.expired());
  EXPECT_THROW(world.senders[0]->content_hashes(1), Error);
  EXPECT_EQ(world.senders[0]->content_hashes(2).size(), model.manifest.tensors.size());
  world.senders[0]->retire_before(3);
  EXPECT_THROW(publish_shard(model, *world.senders[0], 2, 0, {2}), Error);
}

TEST_F(SenderTest, RefusesRowsThatTheirBytesContradict) {
  const auto shards = row_shards(model, *model.source, 0, {2});
  auto tensors = local_tensors(model, *shards, 0, {2});
  tensors[3].row_end += 1;
  try {
    world.senders[0]->publish(1, tensors, shards);
    ADD_FAILURE() << "published";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("'" + model.manifest.at(3).name + "'"));
  }
  EXPECT_THROW(local_tensors(model, *shards, 0, {3}), Error);
}

TEST_F(SenderTest, ReportsTheSameHashesToEveryReceiver) {
  world.publish(1);
  std::vector<std::vector<SenderReport>> reports;
  for (int worker = 0; worker < 2; ++worker) {
    const auto receiver = world.receiver();
    receiver->reserve(world.transaction(1), world.plan());
    LocalTransports way = make_local_transports(2);
    reports.push_back(move_all(world, *receiver, world.transaction(1), way));
    EXPECT_NO_THROW(receiver->verify(world.transaction(1), reports.back()));
  }
  for (size_t s = 0; s < 2; ++s) {
    for (size_t i = 0; i < reports[0][s].slices.size(); ++i) {
      EXPECT_EQ(reports[0][s].slices[i].hash, reports[1][s].slices[i].hash);
    }
  }
}

TEST_F(SenderTest, MovesSideBySideReportTheHashesOfOneAlone) {
  world.publish(1);
  const auto alone = hashes_of_move(world, [] {});
  SyncWorld shared(model, {2});
  shared.publish(1);
  std::vector<quant::ContentHash> inner;
  const auto outer = hashes_of_move(shared, [&] { inner = hashes_of_move(shared, [] {}); });
  EXPECT_EQ(outer, alone);
  EXPECT_EQ(inner, alone);
}

TEST_F(SenderTest, HashesWhatAFailedMoveHadBegun) {
  world.publish(1);
  const auto alone = hashes_of_move(world, [] {});
  SyncWorld retried(model, {2});
  retried.publish(1);
  EXPECT_THROW(
      hashes_of_move(retried, [] { fail(ErrorCode::kUnavailable, "the receiver is gone"); }),
      Error);
  EXPECT_EQ(hashes_of_move(retried, [] {}), alone);
}

}  // namespace
}  // namespace nibble
