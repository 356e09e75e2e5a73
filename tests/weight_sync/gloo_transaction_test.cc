#include <gtest/gtest.h>

#include <csignal>

#include "core/base/fail.h"
#include "core/comm/process_group.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/weight_sync/sync_world.h"
#include "weight_sync/group_transport.h"

// Real processes: ranks 0 and 1 are trainers, the others one worker each. A worker's group has the
// trainers at their ranks and the worker last.

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int kControlTag = 7;

void require(bool condition, const std::string& what) {
  if (!condition) fail(ErrorCode::kInternal, "{}", what);
}

std::unique_ptr<ProcessGroup> join(int port, const std::string& name, int rank, int world) {
  return join_gloo_group({"127.0.0.1", port, name, 20s}, rank, world);
}

// The control channel of these tests: a report's hashes, in the order of the edge.
void send_report(ProcessGroup& group, const SenderReport& report, int to) {
  std::vector<quant::ContentHash> hashes;
  for (const SliceHash& slice : report.slices) hashes.push_back(slice.hash);
  group.send(std::as_bytes(std::span(hashes)), to, kControlTag)->wait();
}

std::vector<SenderReport> receive_reports(ProcessGroup& group, const SyncPlan& plan,
                                          const Transaction& transaction) {
  std::vector<SenderReport> reports;
  for (const Edge& edge : plan.edges) {
    std::vector<quant::ContentHash> hashes(edge.slices.size());
    group.receive(std::as_writable_bytes(std::span(hashes)), edge.sender, kControlTag)->wait();
    SenderReport report{edge.sender, transaction, {}};
    for (size_t i = 0; i < hashes.size(); ++i) {
      report.slices.push_back({edge.slices[i].slice, hashes[i]});
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

// A group that misbehaves in its sends of weights.
class FaultyGroup final : public ProcessGroup {
 public:
  enum class Fault { kNone, kDie, kFlipByte };
  FaultyGroup(ProcessGroup& inner, Fault fault, int at_send)
      : inner_(inner), fault_(fault), at_send_(at_send) {}
  int rank() const override { return inner_.rank(); }
  int world() const override { return inner_.world(); }
  const std::string& name() const override { return inner_.name(); }
  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    return inner_.all_gather(local, out);
  }
  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> send_bytes,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> recv_bytes) override {
    return inner_.all_to_all(send, send_bytes, recv, recv_bytes);
  }
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    if (fault_ == Fault::kNone || num_sends_++ != at_send_) return inner_.send(bytes, peer, tag);
    if (fault_ == Fault::kDie) raise(SIGKILL);
    altered_.assign(bytes.begin(), bytes.end());
    altered_[altered_.size() / 3] ^= std::byte{1};
    return inner_.send(altered_, peer, tag);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    return inner_.receive(bytes, peer, tag);
  }
  void abort() noexcept override { inner_.abort(); }
  bool has_flipped() const { return !altered_.empty(); }

 private:
  ProcessGroup& inner_;
  Fault fault_;
  int at_send_;
  int num_sends_ = 0;
  std::vector<std::byte> altered_;
};

void send_version(SyncWorld& world, ProcessGroup& group, int rank, const Transaction& transaction) {
  GroupTransport transport(group, world.layout.world());
  const SenderReport report = world.senders[static_cast<size_t>(rank)]->move(
      transaction, world.plan(transaction.epoch), transport, Deadline::after(10s));
  send_report(group, report, world.layout.world());
}

// RESERVE to COMMIT on the worker's side.
void receive_version(SyncWorld& world, WeightReceiver& receiver, ProcessGroup& group,
                     const Transaction& transaction) {
  const SyncPlan plan = world.plan(transaction.epoch);
  receiver.reserve(transaction, plan);
  GroupTransport transport(group, world.layout.world());
  receiver.receive(transaction, transport, Deadline::after(10s));
  receiver.verify(transaction, receive_reports(group, plan, transaction));
  receiver.prepare(transaction);
  const ServedWeights served = receiver.commit(transaction);
  require(same_bytes(world.model, *served.weights, *world.model.version(transaction.version)),
          "served bytes differ");
}

TEST(GlooTransaction, TwoTrainersPublishTwiceToTwoWorkers) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    const int port = free_port();
    const int good = run_ranks(4, 60s, [&](int rank) {
      std::unique_ptr<RendezvousServer> server;
      if (rank == 0) server = std::make_unique<RendezvousServer>(port);
      const SyncModel model(name);
      SyncWorld world(model, 2);
      if (rank < 2) {
        const auto first = join(port, "worker0", rank, 3);
        const auto second = join(port, "worker1", rank, 3);
        for (int64_t version = 1; version <= 2; ++version) {
          publish_shard(model, *world.senders[static_cast<size_t>(rank)], version, rank, 2);
          send_version(world, *first, rank, world.transaction(version));
          send_version(world, *second, rank, world.transaction(version));
        }
        return;
      }
      const auto group = join(port, "worker" + std::to_string(rank - 2), 2, 3);
      const auto receiver = world.receiver();
      receive_version(world, *receiver, *group, world.transaction(1));
      receive_version(world, *receiver, *group, world.transaction(2));
    });
    EXPECT_EQ(good, 4) << name;
  }
}

TEST(GlooTransaction, AByteFlippedOnTheWireIsDataLossAndARetryOnTheSameGroupWorks) {
  const int port = free_port();
  const int good = run_ranks(3, 60s, [&](int rank) {
    std::unique_ptr<RendezvousServer> server;
    if (rank == 0) server = std::make_unique<RendezvousServer>(port);
    const SyncModel model("llama_smol");
    SyncWorld world(model, 2);
    const auto group = join(port, "worker", rank, 3);
    const Transaction first = world.transaction(1);
    if (rank < 2) {
      publish_shard(model, *world.senders[static_cast<size_t>(rank)], 1, rank, 2);
      using Fault = FaultyGroup::Fault;
      FaultyGroup faulty(*group, rank == 1 ? Fault::kFlipByte : Fault::kNone, 2);
      send_version(world, faulty, rank, first);
      require(faulty.has_flipped() == (rank == 1), "the fault was not injected");
      send_version(world, *group, rank, first);
      return;
    }
    const auto receiver = world.receiver();
    const SyncPlan plan = world.plan();
    receiver->reserve(first, plan);
    GroupTransport transport(*group, 2);
    receiver->receive(first, transport, Deadline::after(10s));
    bool is_refused = false;
    try {
      receiver->verify(first, receive_reports(*group, plan, first));
    } catch (const Error& error) {
      is_refused = error.code() == ErrorCode::kDataLoss &&
                   std::string(error.what()).find("from sender 1") != std::string::npos;
    }
    require(is_refused, "the flipped byte went through");
    require(receiver->status().state == ReceiverState::kStale, "nothing may be served");
    receive_version(world, *receiver, *group, first);
  });
  EXPECT_EQ(good, 3);
}

// The worker's group when trainer 1 dies in the middle of version 2.
void lose_second_version(SyncWorld& world, WeightReceiver& receiver, ProcessGroup& group) {
  const Transaction second = world.transaction(2);
  receiver.reserve(second, world.plan());
  GroupTransport transport(group, 2);
  const Stopwatch watch;
  try {
    receiver.receive(second, transport, Deadline::after(5s));
  } catch (const Error& error) {
    require(error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kDeadlineExceeded,
            error.what());
    require(std::string(error.what()).find("sender") != std::string::npos, "names the sender");
    require(watch.elapsed_ms() < 6000.0, "within the deadline");
    require(receiver.status().state == ReceiverState::kIdle, "idle again");
    require(receiver.served().version == 1, "serves the old version");
    require(same_bytes(world.model, *receiver.served().weights, *world.model.version(1)),
            "the old version is whole");
    return;
  }
  fail(ErrorCode::kInternal, "received a whole version from a dead trainer");
}

TEST(GlooTransaction, ATrainerKilledMidMoveLeavesTheOldVersionServedAndTheNextIsTaken) {
  const int port = free_port();
  const int good = run_ranks(3, 60s, [&](int rank) {
    std::unique_ptr<RendezvousServer> server;
    if (rank == 2) server = std::make_unique<RendezvousServer>(port);
    const SyncModel model("dense_tied");
    SyncWorld world(model, 2);
    const auto receiver = world.receiver();
    auto group = join(port, "epoch1", rank, 3);
    if (rank == 2) {
      receive_version(world, *receiver, *group, world.transaction(1));
      lose_second_version(world, *receiver, *group);
    } else {
      auto& sender = *world.senders[static_cast<size_t>(rank)];
      for (int64_t version = 1; version <= 2; ++version) {
        publish_shard(model, sender, version, rank, 2);
      }
      send_version(world, *group, rank, world.transaction(1));
      using Fault = FaultyGroup::Fault;
      FaultyGroup faulty(*group, rank == 1 ? Fault::kDie : Fault::kNone, 3);
      try {
        send_version(world, faulty, rank, world.transaction(2));
      } catch (const Error&) {
        // The worker gave up; this trainer goes on.
      }
      require(rank == 0, "trainer 1 survived its own death");
    }
    group.reset();
    // Membership changed: the trainer that is left publishes alone, in epoch 2.
    SyncWorld smaller(model, 1);
    const auto next = join(port, "epoch2", rank == 0 ? 0 : 1, 2);
    if (rank == 0) {
      publish_shard(model, *smaller.senders[0], 3, 0, 1);
      send_version(smaller, *next, 0, smaller.transaction(3, 2));
    } else {
      receive_version(smaller, *receiver, *next, smaller.transaction(3, 2));
    }
  });
  EXPECT_EQ(good, 2) << "the killed trainer does not count, and it must have been killed";
}

TEST(GlooTransaction, AWorkerKilledMidMoveIsATypedErrorForTheTrainer) {
  const int port = free_port();
  const int good = run_ranks(2, 60s, [&](int rank) {
    std::unique_ptr<RendezvousServer> server;
    if (rank == 0) server = std::make_unique<RendezvousServer>(port);
    const SyncModel model("llama_smol");
    SyncWorld world(model, 1);
    const auto group = join(port, "worker", rank, 2);
    if (rank == 1) {
      std::byte go{};
      group->receive(std::span(&go, 1), 0, kControlTag)->wait();  // the group stands on both sides
      raise(SIGKILL);
    }
    const std::byte go{};
    group->send(std::span(&go, 1), 1, kControlTag)->wait();
    publish_shard(model, *world.senders[0], 1, 0, 1);
    GroupTransport transport(*group, 1);
    const Stopwatch watch;
    try {
      world.senders[0]->move(world.transaction(1), world.plan(), transport, Deadline::after(5s));
    } catch (const Error& error) {
      require(
          error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kDeadlineExceeded,
          error.what());
      require(std::string(error.what()).find("receiver 1") != std::string::npos, error.what());
      require(watch.elapsed_ms() < 6000.0, "within the deadline");
      return;
    }
    fail(ErrorCode::kInternal, "sent to the dead");
  });
  EXPECT_EQ(good, 1);
}

}  // namespace
}  // namespace nibble
