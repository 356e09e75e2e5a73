#include <gtest/gtest.h>

#include <functional>

#include "tests/weight_sync/sync_world.h"

namespace nibble {
namespace {

using quant::ContentHash;

class Transaction1To3 : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

TEST_P(Transaction1To3, EveryWorkerServesTheTrainersBytes) {
  const SyncModel model(std::get<0>(GetParam()));
  SyncWorld world(model, {std::get<1>(GetParam())});
  const auto first = world.receiver();
  const auto second = world.receiver();
  for (int64_t version = 1; version <= 3; ++version) {
    world.publish(version);
    const auto expected = model.version(version);
    for (WeightReceiver* receiver : {first.get(), second.get()}) {
      const ServedWeights served = sync_once(world, *receiver, world.transaction(version));
      EXPECT_EQ(served.version, version);
      EXPECT_TRUE(same_bytes(model, *served.weights, *expected));
    }
  }
  EXPECT_EQ(first->status().num_buffers, 2) << "shadow and served take turns";
}

TEST_P(Transaction1To3, HashesOfShardsAddUpToTheServedHashes) {
  const SyncModel model(std::get<0>(GetParam()));
  SyncWorld world(model, {std::get<1>(GetParam())});
  world.publish(1);
  const auto receiver = world.receiver();
  const ServedWeights served = sync_once(world, *receiver, world.transaction(1));
  const auto have = content_hashes(model.manifest, *served.weights, world.kernels);
  std::vector<ContentHash> trained(have.size());
  for (const auto& sender : world.senders) {
    const auto part = sender->content_hashes(1);
    for (size_t t = 0; t < part.size(); ++t) trained[t] += part[t];
  }
  EXPECT_EQ(trained, have);
  // The plain reference loop, over the checkpoint's own bytes.
  for (int64_t t = 0; t < model.manifest.size(); ++t) {
    const StoredTensor& tensor = model.manifest.at(t);
    const TensorView view = model.directory.tensor(tensor.name);
    const auto count = static_cast<int64_t>(view.bytes.size()) / tensor.element_bytes();
    ContentHash want;
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      want += quant::hash_element(
          tensor.kind == StoredKind::kWords ? view.as<uint32_t>()[at] : view.as<uint16_t>()[at],
          static_cast<uint64_t>(i));
    }
    EXPECT_EQ(have[static_cast<size_t>(t)], want) << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Transaction1To3,
                         ::testing::Combine(::testing::Values("dense_untied", "dense_tied",
                                                              "moe_norm", "moe_mixed",
                                                              "llama_smol"),
                                            ::testing::Values(1, 2, 3)),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param)) + "_" +
                                  std::to_string(std::get<1>(param.param));
                         });

TEST(WholeTransaction, TrainersThatShareTheModelInAnyWayPublishTheSameBytes) {
  for (const char* name : {"dense_untied", "moe_norm", "moe_mixed"}) {
    const SyncModel model(name);
    int tried = 0;
    for (const Mesh mesh : {Mesh{2, 2, 1}, Mesh{2, 1, 2}, Mesh{2, 2, 2}, Mesh{4, 2, 4},
                            Mesh{4, 2, 2}, Mesh{8, 1, 8}, Mesh{6, 2, 2}}) {
      if (mesh_problem(model.spec.config, mesh)) continue;
      ++tried;
      SyncWorld world(model, mesh);
      world.publish(2);
      const auto receiver = world.receiver();
      const ServedWeights served = sync_once(world, *receiver, world.transaction(2));
      EXPECT_TRUE(same_bytes(model, *served.weights, *model.version(2)))
          << name << ", " << mesh.world << " ranks, tensor " << mesh.tensor << ", expert "
          << mesh.expert;
      EXPECT_EQ(world.plan().bytes, model.manifest.bytes);
    }
    EXPECT_GE(tried, model.spec.config.num_moe_layers() > 0 ? 7 : 1);
  }
}

TEST(WholeTransaction, ADeltaEndsInTheSameBytesAndMovesFew) {
  for (const char* name : {"dense_tied", "moe_norm"}) {
    const SyncModel model(name);
    SyncWorld world(model, {2});
    const auto receiver = world.receiver();
    world.publish(1);
    sync_once(world, *receiver, world.transaction(1));
    const SmallChange next = small_change(model, 1);
    for (int rank = 0; rank < 2; ++rank) {
      publish_shard(model, *world.senders[static_cast<size_t>(rank)], 2, *next.weights, rank, {2});
    }
    Transaction delta = world.transaction(2);
    delta.base_version = 1;
    receiver->reserve(delta, world.plan());
    LocalTransports ends = make_local_transports(2);
    const auto reports = move_all(world, *receiver, delta, ends);
    receiver->verify(delta, reports);
    receiver->prepare(delta);
    EXPECT_TRUE(same_bytes(model, *receiver->commit(delta).weights, *next.weights));
    const int64_t bytes = reports[0].bytes + reports[1].bytes;
    // A value that changes may do so in one byte or in two.
    EXPECT_LT(bytes, 6 * next.count + 32 * model.manifest.size() + 100);
    EXPECT_LT(bytes, model.manifest.bytes / 20);
  }
}

TEST(WholeTransaction, ADeltaIsRefusedByWhoeverDoesNotHaveItsBase) {
  const SyncModel model("dense_tied");
  SyncWorld world(model, {1});
  const auto receiver = world.receiver();
  world.publish(1);
  world.publish(2);
  const auto refusal = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kFailedPrecondition);
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  Transaction delta = world.transaction(2);
  delta.base_version = 1;
  EXPECT_NE(refusal([&] { receiver->reserve(delta, world.plan()); }).find("version 0 is served"),
            std::string::npos);
  sync_once(world, *receiver, world.transaction(1));
  receiver->reserve(delta, world.plan());
  world.senders[0]->retire_before(2);
  LocalTransports ends = make_local_transports(1);
  EXPECT_NE(refusal([&] {
              (void)world.senders[0]->move(delta, world.plan(), *ends.senders[0],
                                           Deadline::after(std::chrono::seconds(1)));
            }).find("does not hold version 1"),
            std::string::npos);
}

TEST(WholeTransaction, AStaleWorkerPullsTheCommittedVersionFromAPeer) {
  const SyncModel model("dense_tied");
  SyncWorld world(model, {2});
  world.publish(1);
  const auto peer = world.receiver();
  const ServedWeights served = sync_once(world, *peer, world.transaction(1));

  SyncWorld handover(model, {1});  // the peer is the one sender
  handover.senders[0]->publish(1, replica_tensors(model.manifest, *served.weights), served.weights);
  const auto late = handover.receiver();
  EXPECT_EQ(late->status().state, ReceiverState::kStale);
  const ServedWeights pulled = sync_once(handover, *late, handover.transaction(1));
  EXPECT_TRUE(same_bytes(model, *pulled.weights, *model.source));
}

TEST(WholeTransaction, AnEngineMayHoldAnOldVersionWhileTheNextIsServed) {
  const SyncModel model("llama_smol");
  SyncWorld world(model, {2});
  const auto receiver = world.receiver();
  world.publish(1);
  ServedWeights held = sync_once(world, *receiver, world.transaction(1));
  world.publish(2);
  sync_once(world, *receiver, world.transaction(2));
  EXPECT_TRUE(same_bytes(model, *held.weights, *model.version(1)));
  world.publish(3);
  const Transaction third = world.transaction(3);
  try {
    receiver->reserve(third, world.plan());
    ADD_FAILURE() << "a third buffer was made";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
  }
  EXPECT_EQ(receiver->served().version, 2);
  held = {};
  EXPECT_EQ(sync_once(world, *receiver, third).version, 3);
}

}  // namespace
}  // namespace nibble
