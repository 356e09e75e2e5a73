// Whole transactions between processes (process_world.h), and bytes that are altered on the way.
#include "tests/weight_sync/process_world.h"

namespace nibble {
namespace {

class ProcessTransaction : public OverEachWire {};

TEST_P(ProcessTransaction, TwoTrainersPublishTwiceToTwoWorkers) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    const int port = free_port();
    const int good = run_ranks(4, 100s, [&](int rank) {
      const Member member(GetParam(), port, rank, rank == 0);
      const SyncModel model(name);
      SyncWorld world(model, {2}, member.kernels());
      if (rank < 2) {
        const Groups first(member, "worker0", rank, 3), second(member, "worker1", rank, 3);
        for (int64_t version = 1; version <= 2; ++version) {
          publish_shard(model, *world.senders[static_cast<size_t>(rank)], version, rank, {2},
                        member.device());
          send_version(world, first, rank, world.transaction(version));
          send_version(world, second, rank, world.transaction(version));
        }
        // Nobody leaves while another still reads.
        std::byte done{};
        for (const Groups* groups : {&first, &second}) {
          groups->control->receive(std::span(&done, 1), 2, kControlTag)->wait();
        }
        return;
      }
      const Groups groups(member, "worker" + std::to_string(rank - 2), 2, 3);
      const auto receiver = world.receiver();
      receive_version(world, *receiver, groups, world.transaction(1));
      receive_version(world, *receiver, groups, world.transaction(2));
      const std::byte done{};
      for (const int trainer : {0, 1}) {
        groups.control->send(std::span(&done, 1), trainer, kControlTag)->wait();
      }
    });
    EXPECT_EQ(good, 4) << name;
  }
}

TEST_P(ProcessTransaction, DeltasOfAFewChangesAndOfAllArriveWhole) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    const int port = free_port();
    const int good = run_ranks(3, 100s, [&](int rank) {
      const Member member(GetParam(), port, rank, rank == 0);
      const SyncModel model(name);
      SyncWorld world(model, {2}, member.kernels());
      const Groups groups(member, "worker", rank, 3);
      const SmallChange next = small_change(model, 1);
      Transaction few = world.transaction(2), all = world.transaction(3);
      few.base_version = 1;
      all.base_version = 2;
      if (rank < 2) {
        WeightSender& sender = *world.senders[static_cast<size_t>(rank)];
        publish_shard(model, sender, 1, rank, {2}, member.device());
        const int64_t whole = send_version(world, groups, rank, world.transaction(1));
        publish_shard(model, sender, 2, *next.weights, rank, {2}, member.device());
        require(send_version(world, groups, rank, few) < whole / 10, "few changes are many bytes");
        publish_shard(model, sender, 3, rank, {2}, member.device());
        // The same change everywhere: one that the host compresses, and a GPU sends whole.
        const int64_t bytes = send_version(world, groups, rank, all);
        require(member.device() == DeviceKind::kCuda ? bytes > whole : bytes < whole / 2,
                "every byte changed");
        std::byte done{};
        groups.control->receive(std::span(&done, 1), 2, kControlTag)->wait();
        return;
      }
      const auto receiver = world.receiver();
      receive_version(world, *receiver, groups, world.transaction(1));
      receive_version(world, *receiver, groups, few, *next.weights);
      receive_version(world, *receiver, groups, all);
      const std::byte done{};
      for (const int trainer : {0, 1}) {
        groups.control->send(std::span(&done, 1), trainer, kControlTag)->wait();
      }
    });
    EXPECT_EQ(good, 3) << name;
  }
}

TEST_P(ProcessTransaction, BytesAlteredOnTheWireAreDataLossAndARetryOnTheSameGroupWorks) {
  for (const Fault fault : {Fault::kFlipByte, Fault::kTruncate, Fault::kSwap}) {
    const int port = free_port();
    const int good = run_ranks(3, 100s, [&](int rank) {
      const Member member(GetParam(), port, rank, rank == 2);
      const SyncModel model("llama_smol");
      SyncWorld world(model, {2}, member.kernels());
      const Groups groups(member, "worker", rank, 3);
      const Transaction first = world.transaction(1);
      if (rank < 2) {
        publish_shard(model, *world.senders[static_cast<size_t>(rank)], 1, rank, {2},
                      member.device());
        send_version(world, groups, rank, first, rank == 1 ? fault : Fault::kNone, 2);
        send_version(world, groups, rank, first);
        std::byte done{};
        groups.control->receive(std::span(&done, 1), 2, kControlTag)->wait();
        return;
      }
      const auto receiver = world.receiver();
      const SyncPlan plan = world.plan();
      receiver->reserve(first, plan);
      GroupTransport transport(*groups.weights, 2, groups.device);
      receiver->receive(first, transport, Deadline::after(10s));
      bool is_refused = false;
      try {
        receiver->verify(first, receive_reports(*groups.control, plan, first));
      } catch (const Error& error) {
        is_refused = error.code() == ErrorCode::kDataLoss &&
                     std::string(error.what()).find("from sender 1") != std::string::npos;
      }
      require(is_refused, "the altered bytes went through");
      require(receiver->status().state == ReceiverState::kStale, "nothing may be served");
      receive_version(world, *receiver, groups, first);
      const std::byte done{};
      for (const int trainer : {0, 1}) {
        groups.control->send(std::span(&done, 1), trainer, kControlTag)->wait();
      }
    });
    EXPECT_EQ(good, 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Wires, ProcessTransaction, ::testing::Values(Wire::kGloo, Wire::kNccl),
                         wire_name);

}  // namespace
}  // namespace nibble
