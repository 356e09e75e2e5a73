// Part `faults`: one of the two is killed or stopped in the middle of a publication; the other
// gives up, and goes on with a process that takes the place of the lost one.
#include <atomic>
#include <csignal>
#include <map>
#include <string>
#include <thread>

#include "benchmarks/child_processes.h"
#include "benchmarks/figure.h"
#include "benchmarks/model_shapes.h"
#include "benchmarks/pair_parts.h"
#include "benchmarks/pair_world.h"
#include "core/base/background_task.h"
#include "core/device/cuda_device.h"
#include "tests/core/comm/forwarding_group.h"
#include "tests/core/comm/free_port.h"
#include "weight_sync/group_transport.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int64_t kBucketBytes = kGpuTransfers.bucket_bytes;  // as in jobs
constexpr auto kMoveLimit = 60s;
constexpr int kWatchTag = 9;

struct Fault {
  const char* name;
  int signal = SIGKILL;
  int lost_rank = kSenderRank;
  // How the other side learns of it: by the deadline of the move, or because the control channel's
  // connection breaks, upon which it aborts the group.
  bool is_watched = false;
  std::chrono::milliseconds deadline{2000};  ///< of the move that fails
};

constexpr Fault kFaults[] = {
    {"sender killed", SIGKILL, kSenderRank, true, 5000ms},
    {"sender killed, control channel not watched", SIGKILL, kSenderRank, false, 2000ms},
    {"sender stopped", SIGSTOP, kSenderRank, false, 2000ms},
    {"receiver killed", SIGKILL, kReceiverRank, true, 5000ms},
    {"receiver stopped", SIGSTOP, kReceiverRank, false, 2000ms},
};

/// What the three processes of a scenario tell each other beside the groups.
struct Board {
  std::atomic<int64_t> lost_at{0};  ///< steady clock, nanoseconds; 0: not yet
  std::atomic<bool> is_replacement_wanted{false};
  std::atomic<bool> is_replacement_ready{false};
  std::atomic<double> replacement_start_ms{0.0};
};

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(SteadyClock::now().time_since_epoch())
      .count();
}

void wait_for(const std::atomic<bool>& flag, const char* what) {
  const Deadline deadline = Deadline::after(kPatience);
  while (!flag) {
    if (deadline.expired()) fail(ErrorCode::kDeadlineExceeded, "{} did not come", what);
    std::this_thread::sleep_for(1ms);
  }
}

/// A group that ends or stops its process in one of its sends and receives, counted from 0.
class LosingGroup final : public ForwardingGroup {
 public:
  LosingGroup(ProcessGroup& inner, Board& board, int signal, int64_t at_transfer)
      : ForwardingGroup(inner), board_(board), signal_(signal), at_transfer_(at_transfer) {}
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    count();
    return ForwardingGroup::send(bytes, peer, tag);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    count();
    return ForwardingGroup::receive(bytes, peer, tag);
  }

 private:
  void count() {
    if (num_transfers_++ != at_transfer_) return;
    board_.lost_at = now_ns();
    raise(signal_);
  }

  Board& board_;
  const int signal_;
  const int64_t at_transfer_;
  int64_t num_transfers_ = 0;
};

/// Reads what a receiver serves again and again, as an engine does, and compares it with what it
/// served when this was made.
class Reader {
 public:
  Reader(const PairWorld& world, const Member& member, const WeightReceiver& receiver)
      : world_(world),
        receiver_(receiver),
        kernels_(member.make_kernels()),
        version_(receiver.served().version),
        hashes_(content_hashes(world.manifest, *receiver.served().weights, *kernels_)),
        task_([this](const std::stop_token& stop) { run(stop); }) {}
  /// Throws if a reading was not the version's.
  void check() const {
    task_.check();
    if (whole_ == 0 || torn_ > 0) {
      fail(ErrorCode::kDataLoss, "of what was served {} readings were whole, {} not", whole_.load(),
           torn_.load());
    }
  }
  int64_t whole() const { return whole_; }
  double longest_ms() const { return longest_ms_; }

 private:
  void run(const std::stop_token& stop) {
    ops::bind_cuda_thread();
    while (!stop.stop_requested()) {
      const Stopwatch watch;
      const ServedWeights served = receiver_.served();
      const bool is_whole = served.version == version_ &&
                            content_hashes(world_.manifest, *served.weights, *kernels_) == hashes_;
      ++(is_whole ? whole_ : torn_);
      longest_ms_ = std::max(longest_ms_.load(), watch.elapsed_ms());
    }
  }

  const PairWorld& world_;
  const WeightReceiver& receiver_;
  const std::unique_ptr<kernels::WeightKernels> kernels_;
  const int64_t version_;
  const std::vector<quant::ContentHash> hashes_;
  std::atomic<int64_t> whole_{0}, torn_{0};
  std::atomic<double> longest_ms_{0.0};
  BackgroundTask task_;  // last: it ends before what it uses goes away
};

/// Aborts a group when the control channel's connection to the peer breaks.
class Watch {
 public:
  Watch(ProcessGroup& host, ProcessGroup& weights, std::chrono::milliseconds limit)
      : task_([&host, &weights, limit](const std::stop_token&) {
          std::byte never{};
          try {
            host.receive(std::span(&never, 1), 1 - host.rank(), kWatchTag)
                ->wait_until(Deadline::after(limit));
          } catch (const Error&) {
            weights.abort();  // the move's own error says the rest
          }
        }) {}

 private:
  BackgroundTask task_;
};

/// One process of a scenario, in the place of the sender or the receiver.
struct Player {
  Player(const std::string& model, const Seat& seat, int rank_in_pair)
      : rank(rank_in_pair),
        member(seat),
        world(model, 128),
        kernels(member.make_kernels()),
        weights(rank == kSenderRank
                    ? random_weights(world.spec, world.quantization, member.device())
                    : nullptr),
        sender(kSenderRank, world.manifest, *kernels),
        receiver("pair", world.spec.table, world.quantization, world.manifest, *kernels) {}

  // One whole version, or this side of it until the other is lost.
  void exchange(int64_t version, int64_t epoch, ProcessGroup& group, ProcessGroup& host,
                Deadline deadline) {
    const SyncPlan plan = world.plan(kBucketBytes, epoch);
    const Transaction transaction = world.transaction(plan, version, epoch);
    GroupTransport transport(group, kReceiverRank, member.device());
    if (rank == kSenderRank) {
      randomize(world.spec, *weights);
      send_version(world, sender, weights, transaction, plan, transport, host, deadline);
    } else {
      receive_version(receiver, transaction, plan, transport, host, deadline);
    }
  }

  const int rank;
  Member member;
  const PairWorld world;
  const std::unique_ptr<kernels::WeightKernels> kernels;
  const std::shared_ptr<ResidentWeights> weights;  // the sender's
  WeightSender sender;
  WeightReceiver receiver;
};

void run_lost(const Fault& fault, const std::string& model, const Seat& seat, Board& board) {
  Player self(model, seat, fault.lost_rank);
  const PairGroups groups(self.member, "epoch 1", self.rank);
  self.exchange(1, 1, *groups.weights, *groups.host, Deadline::after(kMoveLimit));
  LosingGroup losing(*groups.weights, board, fault.signal,
                     num_transfers(self.world.plan(kBucketBytes)) / 2);
  self.exchange(2, 1, losing, *groups.host, Deadline::after(kMoveLimit));
  fail(ErrorCode::kInternal, "went on as if nothing had happened");
}

void run_replacement(const Fault& fault, const std::string& model, const Seat& seat, Board& board) {
  wait_for(board.is_replacement_wanted, "the loss");
  const Stopwatch watch;
  Player self(model, seat, fault.lost_rank);
  device_memory(self.member.device()).finish();
  board.replacement_start_ms = watch.elapsed_ms();
  board.is_replacement_ready = true;
  const PairGroups groups(self.member, "epoch 2", self.rank);
  self.exchange(3, 2, *groups.weights, *groups.host, Deadline::after(kMoveLimit));
  start_together(*groups.host);
}

// The move that the other side is lost in. Returns when its error came.
void lose_version(const Fault& fault, Player& self, PairGroups& groups, Figure& figure,
                  const Board& board) {
  std::optional<Watch> watch;
  SteadyClock::time_point limit;
  try {
    const SyncPlan plan = self.world.plan(kBucketBytes, 1);
    const Transaction transaction = self.world.transaction(plan, 2, 1);
    GroupTransport transport(*groups.weights, kReceiverRank, self.member.device());
    if (self.rank == kSenderRank) {
      randomize(self.world.spec, *self.weights);
      self.sender.publish(2, replica_tensors(self.world.manifest, *self.weights), self.weights);
    } else {
      self.receiver.reserve(transaction, plan);
    }
    start_together(*groups.host);
    if (fault.is_watched) watch.emplace(*groups.host, *groups.weights, 2 * fault.deadline);
    const Deadline deadline = Deadline::after(fault.deadline);
    limit = deadline.time();
    if (self.rank == kSenderRank) {
      (void)self.sender.move(transaction, plan, transport, deadline);
    } else {
      self.receiver.receive(transaction, transport, deadline);
    }
  } catch (const Error& error) {
    const auto now = SteadyClock::now();
    if (board.lost_at == 0) throw;  // its own
    figure.number("error_after_loss_ms", static_cast<double>(now_ns() - board.lost_at) / 1e6)
        .set("error", error_code_name(error.code()));
    // Past the deadline the communicator is given up before the error is thrown.
    if (now > limit) {
      figure.number("past_deadline_ms",
                    std::chrono::duration<double, std::milli>(now - limit).count());
    }
    progress(fmt::format("faults, {}: {}", fault.name, error.what()));
    return;
  }
  fail(ErrorCode::kInternal, "a whole version went to or came from a lost process");
}

void run_survivor(const Fault& fault, const std::string& model, const Seat& seat, Board& board) {
  Player self(model, seat, 1 - fault.lost_rank);
  auto groups = std::make_unique<PairGroups>(self.member, "epoch 1", self.rank);
  self.exchange(1, 1, *groups->weights, *groups->host, Deadline::after(kMoveLimit));
  Figure figure("fault");
  figure.set("what", fault.name)
      .set("model", model)
      .set("bytes", self.world.manifest.bytes)
      .set("deadline_ms", fault.deadline.count())
      .set("control_watched", fault.is_watched);
  std::optional<Reader> reader;
  if (self.rank == kReceiverRank) reader.emplace(self.world, self.member, self.receiver);
  lose_version(fault, self, *groups, figure, board);
  Stopwatch watch;
  groups.reset();
  figure.number("groups_left_ms", watch.restart_ms());
  board.is_replacement_wanted = true;
  wait_for(board.is_replacement_ready, "the process in place of the lost one");
  watch.restart_ms();
  const PairGroups next(self.member, "epoch 2", self.rank);
  figure.number("replacement_start_ms", board.replacement_start_ms)
      .number("groups_joined_ms", watch.restart_ms());
  if (reader) {
    reader->check();
    const auto state = self.receiver.status();
    NIBBLE_CHECK(state.state == ReceiverState::kIdle && state.served_version == 1,
                 "after the loss the receiver is {} and serves version {}",
                 receiver_state_name(state.state), state.served_version);
    figure.set("readings_of_old_version", reader->whole())
        .set("torn_readings", 0)
        .number("longest_reading_ms", reader->longest_ms());
    reader.reset();
  }
  watch.restart_ms();
  self.exchange(3, 2, *next.weights, *next.host, Deadline::after(kMoveLimit));
  figure.number("next_version_ms", watch.elapsed_ms());
  figure.print();
  start_together(*next.host);
}

}  // namespace

bool run_faults(const PairOptions& options) {
  // Over loopback a tiny model fits into the buffers of the sockets: nobody would be missed.
  const std::map<Place, std::string> models = {
      {Place::kOwnGpu, "qwen3-4b"}, {Place::kSharedGpu, "qwen3-0.6b"}, {Place::kCpu, "tiny-dense"}};
  const std::string& model = models.at(options.place);
  bool good = true;
  for (const Fault& fault : kFaults) {
    const int port = free_port();
    const Shared<Board> board;
    // Each rank has its GPU; the process in place of the lost one gets that one's.
    const auto seat = [&](int rank, int process) {
      return Seat{options.place,       rank, process, port, rank != fault.lost_rank,
                  options.hides_others};
    };
    const std::string name = std::string("faults, ") + fault.name;
    const int lost = fault.lost_rank;
    good =
        run_processes(
            {{name + ": the lost one", [&] { run_lost(fault, model, seat(lost, 0), *board); },
              true},
             {name + ": the other", [&] { run_survivor(fault, model, seat(1 - lost, 1), *board); }},
             {name + ": the replacement",
              [&] { run_replacement(fault, model, seat(lost, 2), *board); }}},
            100s) &&
        good;
  }
  return good;
}

}  // namespace nibble
