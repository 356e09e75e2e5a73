#include "weight_sync/sender.h"

#include <gmock/gmock.h>

#include "tests/weight_sync/sync_world.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

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

}  // namespace
}  // namespace nibble
