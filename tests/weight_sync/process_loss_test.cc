// Processes that are killed or stopped in the middle of a transaction (process_world.h).
#include <atomic>
#include <thread>

#include "tests/weight_sync/process_world.h"

namespace nibble {
namespace {

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

class ProcessLoss : public OverEachWire {};

TEST_P(ProcessLoss, ATrainerKilledMidMoveLeavesTheOldVersionServedAndTheNextIsTaken) {
  lose_a_trainer(GetParam(), Fault::kDie);
}

TEST_P(ProcessLoss, ATrainerStoppedMidMoveLeavesTheOldVersionServedAndTheNextIsTaken) {
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

TEST_P(ProcessLoss, AWorkerKilledMidMoveIsATypedErrorForTheTrainer) {
  lose_the_worker(GetParam(), Fault::kDie);
}

TEST_P(ProcessLoss, AWorkerStoppedMidMoveIsATypedErrorForTheTrainer) {
  lose_the_worker(GetParam(), Fault::kStop);
}

INSTANTIATE_TEST_SUITE_P(Wires, ProcessLoss, ::testing::Values(Wire::kGloo, Wire::kNccl),
                         wire_name);

}  // namespace
}  // namespace nibble
