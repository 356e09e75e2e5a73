#include <gtest/gtest.h>

#include <thread>

#include "tests/weight_sync/sync_world.h"
#include "weight_sync/held_transport.h"
#include "weight_sync/packed_store.h"

// A receiver in the process of one of the senders.

namespace nibble {
namespace {

using namespace std::chrono_literals;

Deadline soon() { return Deadline::after(10s); }

std::unique_ptr<WeightReceiver> colocated_receiver(const SyncWorld& world, int own_rank) {
  return std::make_unique<WeightReceiver>("job", world.model.spec.table, world.model.source->plan(),
                                          world.model.manifest, world.kernels,
                                          ReceiverOptions{own_rank, {}, {}});
}

// Publishes what rank `rank` packed of a version; the packing is shared with the caller.
SharedPacking publish_packing(SyncWorld& world, int64_t version, int rank) {
  SharedPacking packing = row_shards(world.model, *world.model.version(version), rank, world.mesh);
  WeightSender& sender = *world.senders[static_cast<size_t>(rank)];
  sender.retire_before(version);
  sender.publish(version, local_tensors(world.model, *packing, rank, world.mesh), packing);
  return packing;
}

// MOVE and VERIFY of a plan with one sender, in whose process the receiver is.
void flip_until_verified(SyncWorld& world, WeightReceiver& receiver, int64_t version,
                         const SharedPacking& packing) {
  const Transaction transaction = world.transaction(version);
  const SyncPlan plan = world.plan();
  receiver.reserve(transaction, plan);
  receiver.receive_held(transaction, {0, {1}, packing}, nullptr, soon());
  HeldTransport nothing;
  const SenderReport report = world.senders[0]->move(transaction, plan, nothing, soon());
  receiver.verify(transaction, std::vector{report});
}

ServedWeights flip(SyncWorld& world, WeightReceiver& receiver, int64_t version,
                   const SharedPacking& packing) {
  flip_until_verified(world, receiver, version, packing);
  receiver.prepare(world.transaction(version));
  return receiver.commit(world.transaction(version));
}

// Counts what comes over another transport.
class CountingTransport final : public Transport {
 public:
  explicit CountingTransport(Transport& inner) : inner_(inner) {}
  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
            const SentHandler& on_sent, Deadline deadline) override {
    inner_.send(pieces, sizes, on_sent, deadline);
  }
  void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
               const ArrivalHandler& on_arrival, Deadline deadline) override {
    inner_.receive(
        edges, sizes,
        [&](size_t edge, const Segment& segment) {
          bytes_ += segment.bytes;
          on_arrival(edge, segment);
        },
        deadline);
  }
  void abort() noexcept override { inner_.abort(); }
  int64_t bytes() const { return bytes_; }

 private:
  Transport& inner_;
  int64_t bytes_ = 0;
};

// The whole transaction with `own_rank` in the receiver's process; returns the bytes that came over
// the transport.
int64_t sync_colocated(SyncWorld& world, WeightReceiver& receiver, int64_t version, int own_rank) {
  const Transaction transaction = world.transaction(version);
  const SyncPlan plan = world.plan();
  const int ranks = world.layout.world();
  std::vector<SharedPacking> packings;
  packings.reserve(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    packings.push_back(publish_packing(world, version, rank));
  }
  receiver.reserve(transaction, plan);
  LocalTransports ends = make_local_transports(ranks);
  std::vector<std::future<SenderReport>> moves;
  moves.reserve(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    moves.push_back(std::async(std::launch::async, [&, rank] {
      HeldTransport nothing;
      Transport& way = rank == own_rank ? static_cast<Transport&>(nothing)
                                        : *ends.senders[static_cast<size_t>(rank)];
      return world.senders[static_cast<size_t>(rank)]->move(transaction, plan, way, soon());
    }));
  }
  CountingTransport counting(*ends.receiver);
  receiver.receive_held(transaction,
                        {own_rank, world.mesh, packings[static_cast<size_t>(own_rank)]}, &counting,
                        soon());
  std::vector<SenderReport> reports;
  reports.reserve(moves.size());
  for (auto& move : moves) reports.push_back(move.get());
  receiver.verify(transaction, reports);
  receiver.prepare(transaction);
  receiver.commit(transaction);
  return counting.bytes();
}

TEST(ColocatedReceiver, ServesTheVeryMemoryThatTheOnlySenderPacked) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    const SyncModel model(name);
    SyncWorld world(model, {1});
    const auto receiver = colocated_receiver(world, 0);
    for (int64_t version = 1; version <= 3; ++version) {
      const SharedPacking packing = publish_packing(world, version, 0);
      const ServedWeights served = flip(world, *receiver, version, packing);
      EXPECT_EQ(served.version, version);
      EXPECT_EQ(&served.weights->stored(0), packing->data());
      EXPECT_TRUE(same_bytes(model, *served.weights, *model.version(version)));
      EXPECT_EQ(receiver->status().num_buffers, 0) << "a shadow was allocated";
    }
  }
}

TEST(ColocatedReceiver, LetsGoOfTheOldPackingWhenTheNextIsCommitted) {
  const SyncModel model("dense_untied");
  SyncWorld world(model, {1});
  const auto receiver = colocated_receiver(world, 0);
  SharedPacking first = publish_packing(world, 1, 0);
  const std::weak_ptr<const std::vector<StoredParameter>> old = first;
  flip(world, *receiver, 1, first);
  first.reset();
  flip_until_verified(world, *receiver, 2, publish_packing(world, 2, 0));
  EXPECT_FALSE(old.expired()) << "it is served until the commit";
  receiver->prepare(world.transaction(2));
  receiver->commit(world.transaction(2));
  EXPECT_TRUE(old.expired());
}

TEST(ColocatedReceiver, RefusesAPackingThatIsNotWhatTheSenderHashed) {
  const SyncModel model("dense_untied");
  SyncWorld world(model, {1});
  const auto receiver = colocated_receiver(world, 0);
  flip(world, *receiver, 1, publish_packing(world, 1, 0));
  publish_packing(world, 2, 0);
  const SharedPacking other = row_shards(model, *model.version(3), 0, {1});
  try {
    flip_until_verified(world, *receiver, 2, other);
    FAIL() << "another packing was taken for version 2";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDataLoss) << error.what();
  }
  EXPECT_EQ(receiver->served().version, 1);
  EXPECT_TRUE(same_bytes(model, *receiver->served().weights, *model.version(1)));
  EXPECT_EQ(receiver->status().state, ReceiverState::kIdle);
}

TEST(ColocatedReceiver, AnAbortedFlipLeavesTheServedVersionAndTheNextOneWorks) {
  const SyncModel model("dense_untied");
  SyncWorld world(model, {1});
  const auto receiver = colocated_receiver(world, 0);
  flip(world, *receiver, 1, publish_packing(world, 1, 0));
  const SharedPacking second = publish_packing(world, 2, 0);
  flip_until_verified(world, *receiver, 2, second);
  receiver->abort(world.transaction(2), soon());
  EXPECT_EQ(receiver->served().version, 1);
  EXPECT_THROW(receiver->prepare(world.transaction(2)), Error);
  // A retry publishes the same packing under the next number.
  world.senders[0]->publish(3, local_tensors(model, *second, 0, {1}), second);
  EXPECT_EQ(flip(world, *receiver, 3, second).weights->stored(0).words.data(),
            (*second)[0].words.data());
}

TEST(ColocatedReceiver, OnlyRowsOfOtherRanksComeOverTheTransport) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    const SyncModel model(name);
    for (const int ranks : {2, 3}) {
      for (int own_rank = 0; own_rank < ranks; ++own_rank) {
        SyncWorld world(model, {ranks});
        const auto receiver = colocated_receiver(world, own_rank);
        const SyncPlan plan = world.plan();
        for (int64_t version = 1; version <= 2; ++version) {
          EXPECT_EQ(sync_colocated(world, *receiver, version, own_rank),
                    plan.bytes - plan.edge_of(own_rank)->bytes);
          EXPECT_TRUE(same_bytes(model, *receiver->served().weights, *model.version(version)));
        }
      }
    }
  }
}

TEST(ColocatedReceiver, APackingOfAnotherSizeIsRefusedByName) {
  const SyncModel model("dense_untied");
  SyncWorld world(model, {1});
  const auto receiver = colocated_receiver(world, 0);
  const Transaction transaction = world.transaction(1);
  receiver->reserve(transaction, world.plan());
  const SharedPacking half = row_shards(model, *model.version(1), 0, {2});
  try {
    receiver->receive_held(transaction, {0, {1}, half}, nullptr, soon());
    FAIL() << "half of the rows were taken for all";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find(model.manifest.at(0).name), std::string::npos);
  }
  EXPECT_EQ(receiver->status().state, ReceiverState::kStale);
}

TEST(ResidentWeights, OfAnotherOwnerAreReadOnly) {
  const SyncModel model("dense_untied");
  const SharedPacking packing = row_shards(model, *model.source, 0, {1});
  ResidentWeights weights(model.spec.table, model.source->plan(), packing, DeviceKind::kCpu);
  EXPECT_TRUE(same_bytes(model, weights, *model.source));
  EXPECT_EQ(weights.num_bytes(), model.source->num_bytes());
  EXPECT_THROW(weights.stored(0), Error);
}

SharedPacking some_packing() { return std::make_shared<std::vector<StoredParameter>>(1); }

TEST(PackedStore, GivesAVersionOnceToWhoeverWaitsForIt) {
  PackedStore store(1, {4});
  const SharedPacking packing = some_packing();
  std::jthread rank([&] { store.put(7, packing); });
  const HeldPacking taken = store.take(7, soon());
  EXPECT_EQ(taken.parameters, packing);
  EXPECT_EQ(taken.rank, 1);
  EXPECT_EQ(taken.mesh, Mesh{4});
  EXPECT_THROW(store.take(7, soon()), Error);
}

TEST(PackedStore, KeepsNothingAliveThatWasTaken) {
  PackedStore store(0, {1});
  SharedPacking packing = some_packing();
  const std::weak_ptr<const std::vector<StoredParameter>> alive = packing;
  store.put(1, std::move(packing));
  EXPECT_FALSE(alive.expired());
  (void)store.take(1, soon());
  EXPECT_TRUE(alive.expired());
}

TEST(PackedStore, AVersionThatDoesNotComeOrIsPastIsRefusedByNumber) {
  PackedStore store(0, {1});
  const auto refusal = [&](int64_t version) {
    try {
      (void)store.take(version, Deadline::after(1ms));
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(std::to_string(version)), std::string::npos);
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(refusal(41), ErrorCode::kDeadlineExceeded);
  store.put(42, some_packing());
  EXPECT_EQ(refusal(41), ErrorCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nibble
