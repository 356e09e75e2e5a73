// Publications between real processes, over Gloo on the CPU and over NCCL with all processes on one
// GPU. Ranks 0 and 1 are trainers, the others one worker each. A worker's group has the trainers at
// their ranks and the worker last.
#include <gtest/gtest.h>

#include <atomic>

#include "core/comm_cuda/nccl_group.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/weight_sync/faulty_group.h"
#include "tests/weight_sync/sync_world.h"
#include "weight_sync/group_transport.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;
using Fault = FaultyGroup::Fault;

enum class Wire { kGloo, kNccl };

constexpr int kControlTag = 7;

void require(bool condition, const std::string& what) {
  if (!condition) fail(ErrorCode::kInternal, "{}", what);
}

// What a process of a test has, whatever the wire.
class Member {
 public:
  Member(Wire wire, int port, int rank, bool hosts_store) : wire_(wire), port_(port), rank_(rank) {
    if (wire == Wire::kNccl) {
      share_gpu_between_nccl_ranks(rank);
      ops::use_cuda_device(0);
      gpu_kernels_ = ops::make_cuda_weight_kernels();
    }
    if (hosts_store) server_ = std::make_unique<RendezvousServer>(port);
  }
  const kernels::WeightKernels* kernels() const { return gpu_kernels_.get(); }
  DeviceKind device() const { return wire_ == Wire::kNccl ? DeviceKind::kCuda : DeviceKind::kCpu; }
  // The group that weights go through.
  std::unique_ptr<ProcessGroup> join(const std::string& name, int rank, int world) const {
    const Rendezvous rendezvous{"127.0.0.1", port_, name, 20s};
    return wire_ == Wire::kNccl ? join_nccl_group(rendezvous, rank, world)
                                : join_gloo_group(rendezvous, rank, world);
  }
  // The one that reports go through.
  std::unique_ptr<ProcessGroup> join_control(const std::string& name, int rank, int world) const {
    return join_gloo_group({"127.0.0.1", port_, name + " control", 20s}, rank, world);
  }
  int rank() const { return rank_; }

 private:
  Wire wire_;
  int port_;
  int rank_;
  std::unique_ptr<kernels::WeightKernels> gpu_kernels_;
  std::unique_ptr<RendezvousServer> server_;
};

struct Groups {
  Groups(const Member& member, const std::string& name, int rank, int world)
      : weights(member.join(name, rank, world)),
        control(member.join_control(name, rank, world)),
        device(member.device()) {}
  std::unique_ptr<ProcessGroup> weights, control;
  DeviceKind device;
};

void send_report(ProcessGroup& control, const SenderReport& report, int to) {
  std::vector<quant::ContentHash> hashes;
  for (const SliceHash& slice : report.slices) hashes.push_back(slice.hash);
  control.send(std::as_bytes(std::span(hashes)), to, kControlTag)->wait();
}

std::vector<SenderReport> receive_reports(ProcessGroup& control, const SyncPlan& plan,
                                          const Transaction& transaction) {
  std::vector<SenderReport> reports;
  for (const Edge& edge : plan.edges) {
    std::vector<quant::ContentHash> hashes(edge.slices.size());
    control.receive(std::as_writable_bytes(std::span(hashes)), edge.sender, kControlTag)->wait();
    SenderReport report{edge.sender, transaction, {}};
    for (size_t i = 0; i < hashes.size(); ++i) {
      report.slices.push_back({edge.slices[i].slice, hashes[i]});
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

// Returns the bytes that went.
int64_t send_version(SyncWorld& world, const Groups& groups, int rank,
                     const Transaction& transaction, Fault fault = Fault::kNone, int at_send = 0) {
  FaultyGroup wire(*groups.weights, fault, at_send, groups.device);
  GroupTransport transport(wire, world.layout.world(), groups.device);
  const SenderReport report = world.senders[static_cast<size_t>(rank)]->move(
      transaction, world.plan(transaction.epoch), transport, Deadline::after(10s));
  require(fault == Fault::kNone || wire.has_altered(), "the fault was not injected");
  send_report(*groups.control, report, world.layout.world());
  return report.bytes;
}

// RESERVE to COMMIT on the worker's side.
void receive_version(SyncWorld& world, WeightReceiver& receiver, const Groups& groups,
                     const Transaction& transaction, const ResidentWeights& want) {
  const SyncPlan plan = world.plan(transaction.epoch);
  receiver.reserve(transaction, plan);
  GroupTransport transport(*groups.weights, world.layout.world(), groups.device);
  receiver.receive(transaction, transport, Deadline::after(10s));
  receiver.verify(transaction, receive_reports(*groups.control, plan, transaction));
  receiver.prepare(transaction);
  const ServedWeights served = receiver.commit(transaction);
  require(same_bytes(world.model, *served.weights, want), "served bytes differ");
}
void receive_version(SyncWorld& world, WeightReceiver& receiver, const Groups& groups,
                     const Transaction& transaction) {
  receive_version(world, receiver, groups, transaction, *world.model.version(transaction.version));
}

class ProcessTransaction : public ::testing::TestWithParam<Wire> {
 protected:
  void SetUp() override {
    if (GetParam() == Wire::kGloo) return;
    // In a child: CUDA must not start in the process that forks.
    static const bool has_gpu =
        run_ranks(1, 60s, [](int) { require(ops::num_cuda_devices() > 0, "no GPU"); }) == 1;
    if (!has_gpu) GTEST_SKIP() << "no GPU on this machine";
  }
};

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

// Reads what is served again and again, as an engine does, and counts the whole readings.
class Reader {
 public:
  Reader(const SyncWorld& world, const WeightReceiver& receiver, int64_t version)
      : thread_([&world, &receiver, version, this](const std::stop_token& stop) {
          const auto want = world.model.version(version);
          while (!stop.stop_requested()) {
            const ServedWeights served = receiver.served();
            const bool good =
                served.version == version && same_bytes(world.model, *served.weights, *want);
            ++(good ? whole_ : torn_);
          }
        }) {}
  int64_t whole() const { return whole_; }
  int64_t torn() const { return torn_; }

 private:
  std::atomic<int64_t> whole_{0}, torn_{0};
  std::jthread thread_;  // last: it ends before the counters do
};

// The worker's side when trainer 1 stops answering in the middle of version 2.
void lose_second_version(SyncWorld& world, WeightReceiver& receiver, const Groups& groups,
                         std::chrono::milliseconds deadline, double* detected_ms) {
  const Transaction second = world.transaction(2);
  receiver.reserve(second, world.plan());
  GroupTransport transport(*groups.weights, 2, groups.device);
  const Reader reader(world, receiver, 1);
  while (reader.whole() == 0) std::this_thread::yield();  // the error may come in no time
  const Stopwatch watch;
  try {
    receiver.receive(second, transport, Deadline::after(deadline));
  } catch (const Error& error) {
    *detected_ms = watch.elapsed_ms();
    require(error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kDeadlineExceeded,
            error.what());
    require(std::string(error.what()).find("sender") != std::string::npos, "names the sender");
    require(*detected_ms < static_cast<double>(deadline.count()) + 1000.0, "within the deadline");
    require(receiver.status().state == ReceiverState::kIdle, "idle again");
    require(receiver.served().version == 1, "serves the old version");
    require(same_bytes(world.model, *receiver.served().weights, *world.model.version(1)),
            "the old version is whole");
    require(reader.whole() > 0 && reader.torn() == 0, "served throughout");
    return;
  }
  fail(ErrorCode::kInternal, "received a whole version from a trainer that does not answer");
}

// A stopped process outlives its alarm.
struct KillAtEnd {
  int64_t pid = 0;
  ~KillAtEnd() {
    if (pid > 0) kill(static_cast<pid_t>(pid), SIGKILL);
  }
};

// Trainer 1 is lost to `fault` in the middle of version 2; then the trainer that is left publishes
// alone, in the next epoch. Prints what each part took on the worker.
void lose_a_trainer(Wire wire, Fault fault) {
  const int port = free_port();
  const int good = run_ranks(3, 100s, [&](int rank) {
    const Member member(wire, port, rank, rank == 2);
    const SyncModel model("dense_tied");
    SyncWorld world(model, {2}, member.kernels());
    const auto receiver = world.receiver();
    auto groups = std::make_unique<Groups>(member, "epoch1", rank, 3);
    double detected_ms = 0.0;
    KillAtEnd lost;
    if (rank == 2) {
      groups->control->receive(std::as_writable_bytes(std::span(&lost.pid, 1)), 1, kControlTag)
          ->wait();
      receive_version(world, *receiver, *groups, world.transaction(1));
      lose_second_version(world, *receiver, *groups, 3s, &detected_ms);
    } else {
      const int64_t pid = getpid();
      if (rank == 1) {
        groups->control->send(std::as_bytes(std::span(&pid, 1)), 2, kControlTag)->wait();
      }
      auto& sender = *world.senders[static_cast<size_t>(rank)];
      for (int64_t version = 1; version <= 2; ++version) {
        publish_shard(model, sender, version, rank, {2}, member.device());
      }
      send_version(world, *groups, rank, world.transaction(1));
      try {
        send_version(world, *groups, rank, world.transaction(2), rank == 1 ? fault : Fault::kNone,
                     3);
      } catch (const Error& error) {
        // The worker gave up; this trainer goes on.
        require(rank == 0 && error.code() != ErrorCode::kInternal, error.what());
      }
      require(rank == 0, "trainer 1 went on as if nothing had happened");
    }
    const Stopwatch watch;
    groups.reset();
    const double left_ms = watch.elapsed_ms();
    SyncWorld smaller(model, {1}, member.kernels());
    const Groups next(member, "epoch2", rank == 0 ? 0 : 1, 2);
    const double joined_ms = watch.elapsed_ms();
    if (rank == 0) {
      publish_shard(model, *smaller.senders[0], 3, 0, {1}, member.device());
      send_version(smaller, next, 0, smaller.transaction(3, 2));
      std::byte done{};
      next.control->receive(std::span(&done, 1), 1, kControlTag)->wait();
      return;
    }
    receive_version(smaller, *receiver, next, smaller.transaction(3, 2));
    fprintf(stderr,
            "%s trainer over %s: error after %.0f ms, group left in %.0f, next one joined in "
            "%.0f, next version served after %.0f\n",
            fault == Fault::kDie ? "killed" : "stopped", wire == Wire::kNccl ? "NCCL" : "Gloo",
            detected_ms, left_ms, joined_ms - left_ms, watch.elapsed_ms());
    const std::byte done{};
    next.control->send(std::span(&done, 1), 0, kControlTag)->wait();
  });
  EXPECT_EQ(good, 2) << "the lost trainer does not count, and it must have been lost";
}

TEST_P(ProcessTransaction, ATrainerKilledMidMoveLeavesTheOldVersionServedAndTheNextIsTaken) {
  lose_a_trainer(GetParam(), Fault::kDie);
}

TEST_P(ProcessTransaction, ATrainerStoppedMidMoveLeavesTheOldVersionServedAndTheNextIsTaken) {
  lose_a_trainer(GetParam(), Fault::kStop);
}

// The worker is lost when it asks for its fourth bucket.
void lose_the_worker(Wire wire, Fault fault) {
  const int port = free_port();
  const int good = run_ranks(2, 100s, [&](int rank) {
    const Member member(wire, port, rank, rank == 0);
    const SyncModel model("llama_smol");
    SyncWorld world(model, {1}, member.kernels());
    const Groups groups(member, "worker", rank, 2);
    KillAtEnd lost;
    if (rank == 1) {
      const int64_t pid = getpid();
      groups.control->send(std::as_bytes(std::span(&pid, 1)), 0, kControlTag)->wait();
      const auto receiver = world.receiver();
      receiver->reserve(world.transaction(1), world.plan());
      FaultyGroup faulty(*groups.weights, fault, 3, groups.device);
      GroupTransport transport(faulty, 1, groups.device);
      receiver->receive(world.transaction(1), transport, Deadline::after(60s));
      fail(ErrorCode::kInternal, "went on as if nothing had happened");
    }
    groups.control->receive(std::as_writable_bytes(std::span(&lost.pid, 1)), 1, kControlTag)
        ->wait();
    publish_shard(model, *world.senders[0], 1, 0, {1}, member.device());
    GroupTransport transport(*groups.weights, 1, groups.device);
    const Stopwatch watch;
    try {
      world.senders[0]->move(world.transaction(1), world.plan(), transport, Deadline::after(3s));
    } catch (const Error& error) {
      require(
          error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kDeadlineExceeded,
          error.what());
      require(std::string(error.what()).find("receiver 1") != std::string::npos, error.what());
      require(watch.elapsed_ms() < 4000.0, "within the deadline");
      fprintf(stderr, "%s worker over %s: error after %.0f ms\n",
              fault == Fault::kDie ? "killed" : "stopped", wire == Wire::kNccl ? "NCCL" : "Gloo",
              watch.elapsed_ms());
      return;
    }
    // What is left of so small a model fits into NCCL's buffers, and a stopped process keeps its
    // connections: the sender is done, and it is the worker's answer that never comes.
    if (fault == Fault::kStop && wire == Wire::kNccl) return;
    fail(ErrorCode::kInternal, "sent to the dead");
  });
  EXPECT_EQ(good, 1);
}

TEST_P(ProcessTransaction, AWorkerKilledMidMoveIsATypedErrorForTheTrainer) {
  lose_the_worker(GetParam(), Fault::kDie);
}

TEST_P(ProcessTransaction, AWorkerStoppedMidMoveIsATypedErrorForTheTrainer) {
  lose_the_worker(GetParam(), Fault::kStop);
}

INSTANTIATE_TEST_SUITE_P(Wires, ProcessTransaction, ::testing::Values(Wire::kGloo, Wire::kNccl),
                         [](const auto& param) {
                           return std::string(param.param == Wire::kGloo ? "Gloo" : "Nccl");
                         });

}  // namespace
}  // namespace nibble
