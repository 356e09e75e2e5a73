// Tensors that are the same in every version travel once to a receiver, and lie there once.
#include <gmock/gmock.h>

#include <set>

#include "tests/weight_sync/sync_world.h"
#include "weight_sync/held_transport.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

Deadline soon() { return Deadline::after(10s); }

// All but norms are frozen.
struct FrozenModel {
  explicit FrozenModel(const std::string& name) : sync(name) {
    for (ParameterSpec& parameter : sync.spec.table.parameters) {
      parameter.is_frozen = !parameter.is_vector();
    }
    sync.manifest = make_manifest(sync.spec.table, sync.source->plan());
    for (const StoredTensor& tensor : sync.manifest.tensors) {
      if (!tensor.is_frozen) trained_bytes += tensor.bytes();
    }
  }
  std::unique_ptr<ResidentWeights> version(int64_t version) const {
    auto weights = sync.version(version);
    for (int64_t p = 0; p < sync.spec.table.size(); ++p) {
      if (sync.spec.table.at(p).is_frozen) weights->stored(p) = sync.source->stored(p);
    }
    return weights;
  }

  SyncModel sync;
  int64_t trained_bytes = 0;
};

class FrozenTensors : public ::testing::Test {
 protected:
  void publish(int64_t version) {
    const auto weights = model.version(version);
    for (int rank = 0; rank < world.mesh.world; ++rank) {
      publish_shard(model.sync, *world.senders[static_cast<size_t>(rank)], version, *weights, rank,
                    world.mesh);
    }
  }
  Transaction omitting(int64_t version, int64_t epoch = 1) const {
    Transaction transaction = world.transaction(version, epoch);
    transaction.omits_frozen = true;
    return transaction;
  }
  // A whole transaction; returns the bytes that senders sent.
  int64_t sync(WeightReceiver& receiver, const Transaction& transaction) {
    receiver.reserve(transaction, world.plan(transaction.epoch));
    LocalTransports ends = make_local_transports(world.layout.world());
    const auto reports = move_all(world, receiver, transaction, ends);
    EXPECT_EQ(receiver.status().arrived_bytes, receiver.status().expected_bytes);
    receiver.verify(transaction, reports);
    receiver.prepare(transaction);
    receiver.commit(transaction);
    int64_t bytes = 0;
    for (const SenderReport& report : reports) bytes += report.bytes;
    return bytes;
  }
  void expect_serves(const WeightReceiver& receiver, int64_t version) const {
    ASSERT_EQ(receiver.served().version, version);
    EXPECT_TRUE(same_bytes(model.sync, *receiver.served().weights, *model.version(version)));
    // Hashes are of all tensors, those that did not travel too.
    EXPECT_EQ(*receiver.served().tensor_hashes,
              content_hashes(model.sync.manifest, *model.version(version), world.kernels));
  }

  FrozenModel model{"llama_smol"};
  SyncWorld world{model.sync, {2}};
};

TEST_F(FrozenTensors, TravelOnceAndLieOnceBesideTwoBuffers) {
  const auto receiver = world.receiver();
  EXPECT_FALSE(receiver->has_frozen());
  publish(1);
  EXPECT_EQ(sync(*receiver, world.transaction(1)), model.sync.manifest.bytes);
  EXPECT_TRUE(receiver->has_frozen());
  std::shared_ptr<const ResidentWeights> before = receiver->served().weights;
  for (int64_t version = 2; version <= 4; ++version) {
    publish(version);
    EXPECT_EQ(sync(*receiver, omitting(version)), model.trained_bytes);
    expect_serves(*receiver, version);
    EXPECT_TRUE(same_bytes(model.sync, *before, *model.version(version - 1)))
        << "an engine may still compute with it";
    const auto after = receiver->served().weights;
    for (int64_t p = 0; p < model.sync.spec.table.size(); ++p) {
      const bool is_frozen = model.sync.spec.table.at(p).is_frozen;
      EXPECT_EQ(before->stored(p).words.data() == after->stored(p).words.data() &&
                    before->stored(p).bf16.data() == after->stored(p).bf16.data(),
                is_frozen);
    }
    before = after;
  }
  EXPECT_EQ(receiver->status().num_buffers, 2);
  EXPECT_LT(20 * model.trained_bytes, model.sync.manifest.bytes) << "it is worth something";
}

TEST_F(FrozenTensors, AreNotLeftOutForAReceiverThatHasNone) {
  const auto receiver = world.receiver();
  publish(1);
  try {
    receiver->reserve(omitting(1), world.plan());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kFailedPrecondition);
    EXPECT_THAT(error.what(), HasSubstr("which this worker does not have"));
  }
  sync(*receiver, world.transaction(1));
  expect_serves(*receiver, 1);
  // Reserved with them, it is not moved without.
  publish(2);
  receiver->reserve(world.transaction(2), world.plan());
  LocalTransports ends = make_local_transports(2);
  EXPECT_THROW(receiver->receive(omitting(2), *ends.receiver, soon()), Error);
}

TEST_F(FrozenTensors, ASecondWholeVersionDoesNotWriteToThoseThatAreServed) {
  const auto receiver = world.receiver();
  publish(1);
  sync(*receiver, world.transaction(1));
  auto served = receiver->served().weights;
  publish(2);
  const Transaction second = world.transaction(2);
  receiver->reserve(second, world.plan());
  expect_serves(*receiver, 1);
  LocalTransports ends = make_local_transports(2);
  const auto reports = move_all(world, *receiver, second, ends);
  EXPECT_TRUE(same_bytes(model.sync, *served, *model.version(1)));
  receiver->verify(second, reports);
  receiver->prepare(second);
  receiver->commit(second);
  expect_serves(*receiver, 2);
  EXPECT_TRUE(same_bytes(model.sync, *served, *model.version(1)));
  served.reset();
  publish(3);
  EXPECT_EQ(sync(*receiver, omitting(3)), model.trained_bytes);
  expect_serves(*receiver, 3);
}

TEST_F(FrozenTensors, OtherOnesOfTheSendersAreFoundAndComeAnew) {
  const auto receiver = world.receiver();
  publish(1);
  sync(*receiver, world.transaction(1));
  // Trainers that began anew with another base.
  SyncWorld other(model.sync, {2});
  const auto weights = model.version(2);
  weights->stored(model.sync.spec.table.embedding).bf16[77] ^= 1;
  for (int rank = 0; rank < 2; ++rank) {
    publish_shard(model.sync, *other.senders[static_cast<size_t>(rank)], 2, *weights, rank,
                  other.mesh);
  }
  Transaction second = other.transaction(2);
  second.omits_frozen = true;
  receiver->reserve(second, other.plan());
  LocalTransports ends = make_local_transports(2);
  const auto reports = move_all(other, *receiver, second, ends);
  try {
    receiver->verify(second, reports);
    FAIL() << "two bases were taken for one";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
    EXPECT_THAT(error.what(), HasSubstr("model.embed_tokens.weight"));
  }
  expect_serves(*receiver, 1);
  EXPECT_FALSE(receiver->has_frozen());
  sync_once(other, *receiver, other.transaction(2, 2));
  EXPECT_TRUE(same_bytes(model.sync, *receiver->served().weights, *weights));
  EXPECT_TRUE(receiver->has_frozen());
}

TEST_F(FrozenTensors, StayInPlaceWhileTheOnlyBufferIsReplaced) {
  std::shared_ptr<const ResidentWeights> engine;
  ReceiverOptions options;
  options.release_engine = [&] { engine.reset(); };
  const auto receiver = world.receiver(options);
  publish(1);
  sync(*receiver, world.transaction(1));
  engine = receiver->served().weights;
  const uint16_t* where = engine->stored(model.sync.spec.table.embedding).bf16.data();
  publish(2);
  EXPECT_EQ(sync(*receiver, omitting(2)), model.trained_bytes);
  engine = receiver->served().weights;
  expect_serves(*receiver, 2);
  EXPECT_EQ(engine->stored(model.sync.spec.table.embedding).bf16.data(), where);
  EXPECT_EQ(receiver->status().num_buffers, 1);
  // What comes to nothing spoils the buffer, not what no version changes.
  publish(3);
  receiver->reserve(omitting(3), world.plan());
  LocalTransports ends = make_local_transports(2);
  (void)move_all(world, *receiver, omitting(3), ends);
  receiver->abort(omitting(3), soon());
  EXPECT_EQ(receiver->status().state, ReceiverState::kPoisoned);
  EXPECT_TRUE(receiver->has_frozen());
  publish(4);
  EXPECT_EQ(sync(*receiver, omitting(4)), model.trained_bytes);
  engine = receiver->served().weights;
  expect_serves(*receiver, 4);
}

TEST_F(FrozenTensors, AreLeftOutOfDeltasToo) {
  const auto receiver = world.receiver();
  publish(1);
  sync(*receiver, world.transaction(1));
  publish(2);
  Transaction delta = omitting(2);
  delta.base_version = 1;
  EXPECT_LE(sync(*receiver, delta), 2 * model.trained_bytes);
  expect_serves(*receiver, 2);
}

TEST_F(FrozenTensors, ComeFromAPeerAndAreKnownInAnyCut) {
  const auto first = world.receiver(), late = world.receiver();
  publish(1);
  sync(*first, world.transaction(1));
  sync(*late, world.transaction(1));
  publish(2);
  sync(*first, omitting(2));
  const auto pull = [&](WeightReceiver& receiver, const WeightReceiver& from, bool omits) {
    const std::vector<std::string> members = {"first", "late"};
    const auto whole = replica_slices(model.sync.manifest);
    const Layout layout{{whole}};
    const SyncPlan plan = make_plan({model.sync.manifest, layout, whole, 2, members, kTestSizes});
    const ServedWeights served = from.served();
    WeightSender sender(0, model.sync.manifest, world.kernels);
    sender.publish(served.version,
                   shard_tensors(model.sync.manifest, served.weights->parameters(), whole),
                   served.weights);
    const Transaction transaction{"job", 2, served.version, plan.digest, 0, omits};
    receiver.reserve(transaction, plan);
    LocalTransports ends = make_local_transports(1);
    auto move = std::async(std::launch::async, [&] {
      return sender.move(transaction, plan, *ends.senders[0], soon());
    });
    receiver.receive(transaction, *ends.receiver, soon());
    const SenderReport report = move.get();
    receiver.verify(transaction, std::vector{report});
    receiver.prepare(transaction);
    receiver.commit(transaction);
    return report.bytes;
  };
  // One that was left behind has them, cut as two trainers sent them; one that is new has nothing.
  EXPECT_EQ(pull(*late, *first, true), model.trained_bytes);
  expect_serves(*late, 2);
  const auto restarted = world.receiver();
  EXPECT_EQ(pull(*restarted, *late, restarted->has_frozen()), model.sync.manifest.bytes);
  expect_serves(*restarted, 2);
  EXPECT_TRUE(restarted->has_frozen());
}

TEST_F(FrozenTensors, OfARankInTheReceiversProcessAreCopiedOnce) {
  ReceiverOptions options;
  options.own_sender = 1;
  const auto receiver = world.receiver(options);
  const auto sync_colocated = [&](const Transaction& transaction) {
    const auto weights = model.version(transaction.version);
    std::vector<SharedPacking> packings;
    for (int rank = 0; rank < 2; ++rank) {
      packings.push_back(row_shards(model.sync, *weights, rank, world.mesh));
      world.senders[static_cast<size_t>(rank)]->publish(
          transaction.version, local_tensors(model.sync, *packings.back(), rank, world.mesh),
          packings.back());
    }
    receiver->reserve(transaction, world.plan());
    LocalTransports ends = make_local_transports(2);
    HeldTransport nothing;
    auto own = std::async(std::launch::async, [&] {
      return world.senders[1]->move(transaction, world.plan(), nothing, soon());
    });
    auto other = std::async(std::launch::async, [&] {
      return world.senders[0]->move(transaction, world.plan(), *ends.senders[0], soon());
    });
    receiver->receive_held(transaction, {1, world.mesh, packings[1]}, ends.receiver.get(), soon());
    const std::vector<SenderReport> reports = {other.get(), own.get()};
    receiver->verify(transaction, reports);
    receiver->prepare(transaction);
    receiver->commit(transaction);
    return reports[0].bytes + reports[1].bytes;
  };
  EXPECT_EQ(sync_colocated(world.transaction(1)), model.sync.manifest.bytes);
  EXPECT_EQ(sync_colocated(omitting(2)), model.trained_bytes);
  expect_serves(*receiver, 2);
}

TEST(FrozenManifest, SidesThatDisagreeAboutThemRefuseEachOther) {
  const SyncModel all_trained("llama_smol");
  const FrozenModel frozen("llama_smol");
  EXPECT_NE(frozen.sync.manifest.digest, all_trained.manifest.digest);
  const auto difference =
      manifest_diff(manifest_text(frozen.sync.manifest), manifest_text(all_trained.manifest));
  ASSERT_TRUE(difference.has_value());
  EXPECT_THAT(*difference, HasSubstr("frozen"));
}

}  // namespace
}  // namespace nibble
