// Part `sync`: packed weights from a trainer on one GPU to an engine on another.
#include <algorithm>
#include <map>

#include "benchmarks/child_processes.h"
#include "benchmarks/figure.h"
#include "benchmarks/generation.h"
#include "benchmarks/model_shapes.h"
#include "benchmarks/pair_parts.h"
#include "benchmarks/pair_sync_cases.h"
#include "benchmarks/pair_world.h"
#include "benchmarks/peer_copy.h"
#include "benchmarks/small_changes.h"
#include "core/base/env.h"
#include "tests/core/comm/free_port.h"
#include "weight_sync/group_transport.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int kRawTag = 5;
constexpr int64_t kRawBytes = int64_t{1} << 30;
constexpr auto kMoveLimit = 60s;

/// Milliseconds of a copy from one GPU to the other, by case.
constexpr size_t kMaxCases = 16;
struct PeerCopies {
  double ms[kMaxCases] = {};
};

// In a process of its own, which sees both GPUs.
void measure_peer_copies(const PairOptions& options, const std::vector<SyncCase>& cases,
                         PeerCopies& out) {
  std::map<int64_t, double> known;  // several cases move as many bytes
  for (size_t c = 0; c < cases.size(); ++c) {
    const int64_t bytes = PairWorld(cases[c].model, cases[c].group).manifest.bytes;
    if (!known.contains(bytes)) {
      known[bytes] = measure_peer_copy(bytes, options.place == Place::kSharedGpu ? 0 : 1);
    }
    out.ms[c] = known[bytes];
  }
}

/// One rank of a case.
struct Rank {
  Rank(const SyncCase& sync_case, const Seat& seat, int rank, double peer_copy_ms)
      : it(sync_case),
        member(seat),
        world(it.model, it.group),
        groups(member, "sync", rank),
        kernels(member.make_kernels()),
        peer_ms(peer_copy_ms) {}
  Figure figure(const std::string& bench, const SyncPlan& plan) const {
    return Figure(bench)
        .set("model", world.model)
        .set("group", world.group)
        .set("channels", it.channels.name)
        .set("bucket_mib", plan.sizes.bucket_bytes >> 20)
        .set("bytes", plan.bytes)
        .set("pieces", plan.edges.at(0).slices.size())
        .set("transfers", num_transfers(plan));
  }
  // Rate of a time, and its share of the copy's.
  void add_rate(Figure& figure, const std::string& key, int64_t bytes, double ms) const {
    figure.number(key + "_GB_per_s", static_cast<double>(bytes) / ms / 1e6);
    if (peer_ms > 0.0) figure.number(key + "_of_peer_copy", peer_ms / ms);
  }

  const SyncCase& it;
  Member member;
  const PairWorld world;
  const PairGroups groups;
  const std::unique_ptr<kernels::WeightKernels> kernels;
  const double peer_ms;
};

// One large buffer again and again until as many bytes have gone as the model has.
void move_raw(Rank& rank, Array<std::byte>& memory, int64_t bytes) {
  std::vector<std::unique_ptr<PendingTransfer>> pending;
  const bool sends = rank.groups.weights->rank() == kSenderRank;
  for (int64_t left = bytes; left > 0; left -= memory.num_bytes()) {
    const std::span<std::byte> part(memory.data(),
                                    static_cast<size_t>(std::min(left, memory.num_bytes())));
    pending.push_back(sends ? rank.groups.weights->send(part, kReceiverRank, kRawTag)
                            : rank.groups.weights->receive(part, kSenderRank, kRawTag));
  }
  for (const auto& transfer : pending) transfer->wait();
}

// Runs `move` once unmeasured and then the case's rounds; each begins on both sides together.
template <typename Move>
std::vector<double> time_rounds(Rank& rank, Move move) {
  std::vector<double> ms;
  for (int round = 0; round <= rank.it.rounds; ++round) {
    start_together(*rank.groups.host);
    const Stopwatch watch;
    move();
    if (round > 0) ms.push_back(watch.elapsed_ms());
  }
  return ms;
}

void send_wire(Rank& rank, ResidentWeights& weights) {
  const PairWorld& world = rank.world;
  for (const int64_t mib : rank.it.bucket_mib) {
    const SyncPlan plan = world.plan(mib << 20);
    randomize(world.spec, weights);
    const auto pieces =
        edge_pieces(world.manifest, plan.edges.at(0), replica_tensors(world.manifest, weights));
    GroupTransport transport(*rank.groups.weights, kReceiverRank, rank.member.device());
    time_rounds(rank, [&] {
      transport.send(
          pieces, plan.sizes, [](const Segment&) {}, Deadline::after(kMoveLimit));
    });
    send_hashes(*rank.groups.host, content_hashes(world.manifest, weights, *rank.kernels));
  }
  const int64_t bytes = world.plan(1 << 20).bytes;
  auto raw =
      Array<std::byte>(static_cast<size_t>(std::min(bytes, kRawBytes)), rank.member.device());
  time_rounds(rank, [&] { move_raw(rank, raw, bytes); });
}

// The wire alone, into memory that nobody serves: no hashes on the way, one check at the end.
void receive_wire(Rank& rank) {
  const PairWorld& world = rank.world;
  std::vector<std::pair<Figure, double>> figures;
  int64_t bytes = 0;
  {
    ResidentWeights weights(world.spec.table, world.quantization, rank.member.device());
    for (const int64_t mib : rank.it.bucket_mib) {
      const SyncPlan plan = world.plan(mib << 20);
      bytes = plan.bytes;
      IncomingEdge edge{kSenderRank, {}};
      for (const PlannedSlice& planned : plan.edges.at(0).slices) {
        const StoredTensor& tensor = world.manifest.at(planned.slice.tensor);
        edge.pieces.push_back(stored_bytes(weights.stored(tensor.parameter), tensor)
                                  .subspan(static_cast<size_t>(planned.byte_begin),
                                           static_cast<size_t>(planned.bytes())));
      }
      GroupTransport transport(*rank.groups.weights, kReceiverRank, rank.member.device());
      const auto ms = time_rounds(rank, [&] {
        transport.receive(
            std::span(&edge, 1), plan.sizes, [](size_t, const Segment&) {},
            Deadline::after(kMoveLimit));
      });
      const Stopwatch watch;
      const auto hashes = content_hashes(world.manifest, weights, *rank.kernels);
      const double hash_ms = watch.elapsed_ms();
      if (hashes != receive_hashes(*rank.groups.host, hashes.size())) {
        fail(ErrorCode::kDataLoss, "{}, buckets of {} MiB: other bytes arrived than were sent",
             world.model, mib);
      }
      Figure figure = rank.figure("sync_wire", plan);
      figure.times("wire", ms).number("hash_ms", hash_ms);
      rank.add_rate(figure, "wire", bytes, median(ms));
      figures.emplace_back(std::move(figure), median(ms));
    }
  }
  auto raw =
      Array<std::byte>(static_cast<size_t>(std::min(bytes, kRawBytes)), rank.member.device());
  const auto raw_ms = time_rounds(rank, [&] { move_raw(rank, raw, bytes); });
  for (auto& [figure, wire_ms] : figures) {
    figure.times("raw", raw_ms).number("wire_of_raw", median(raw_ms) / wire_ms);
    rank.add_rate(figure, "raw", bytes, median(raw_ms));
    figure.print();
  }
}

// Versions of the transactions, in order: `rounds` + 1 while the engine rests, then twice as many
// while it generates.
int num_quiet(const SyncCase& it) { return it.rounds + 1; }
int num_busy(const SyncCase& it) { return 2 * it.rounds; }

// Then as many deltas, in which one byte in `kChangeStride` has changed: measured are .3 % of the
// bytes a step at a learning rate of 1e-6 (docs/performance.md).
constexpr int64_t kChangeStride = 333;
constexpr int kSizeTag = 6;

void send_deltas(Rank& rank, WeightSender& sender, std::shared_ptr<ResidentWeights> weights,
                 const SyncPlan& plan, int64_t version, int64_t epoch, Transport& transport) {
  auto next = std::make_shared<ResidentWeights>(rank.world.spec.table, rank.world.quantization,
                                                rank.member.device());
  for (int i = 0; i < num_quiet(rank.it); ++i) {
    copy_weights(*weights, *next);
    change_every(*rank.kernels, *next, kChangeStride, i);
    Transaction transaction = rank.world.transaction(plan, ++version, epoch);
    transaction.base_version = version - 1;
    const int64_t bytes = send_version(rank.world, sender, next, transaction, plan, transport,
                                       *rank.groups.host, Deadline::after(kMoveLimit));
    rank.groups.host->send(std::as_bytes(std::span(&bytes, 1)), kReceiverRank, kSizeTag)->wait();
    std::swap(weights, next);
  }
}

void send_transactions(Rank& rank, const std::shared_ptr<ResidentWeights>& weights) {
  const PairWorld& world = rank.world;
  WeightSender sender(kSenderRank, world.manifest, *rank.kernels);
  int64_t version = 0;
  int64_t epoch = 0;
  for (const int64_t mib : rank.it.transaction_mib) {
    const SyncPlan plan = world.plan(mib << 20, ++epoch);
    GroupTransport transport(*rank.groups.weights, kReceiverRank, rank.member.device());
    for (int i = 0; i < num_quiet(rank.it) + num_busy(rank.it); ++i) {
      randomize(world.spec, *weights);  // or a lost write would find the same bytes there
      send_version(world, sender, weights, world.transaction(plan, ++version, epoch), plan,
                   transport, *rank.groups.host, Deadline::after(kMoveLimit));
    }
    send_deltas(rank, sender, weights, plan, version, epoch, transport);
    version += num_quiet(rank.it);
  }
}

struct Busy {
  SteadyClock::time_point begin, end, swapped;
};

// Decoding steps that have nothing beside them, and those that are half or more inside a move.
void add_generation(Figure& figure, const Generation& generation, size_t first_step,
                    const std::vector<Busy>& moves) {
  std::vector<double> alone, during;
  const auto steps = generation.steps();
  for (size_t s = first_step; s < steps.size(); ++s) {
    const Generation::Step& step = steps[s];
    bool is_alone = true;
    bool is_during = false;
    const auto middle = step.begin + (step.end - step.begin) / 2;
    for (const Busy& move : moves) {
      is_during = is_during || (middle >= move.begin && middle <= move.end);
      is_alone = is_alone && (step.end < move.begin || step.begin > move.swapped);
    }
    if (is_during) during.push_back(step.ms());
    if (is_alone) alone.push_back(step.ms());
  }
  const auto batch = static_cast<double>(generation.batch());
  figure.set("batch", generation.batch())
      .times("step_alone", alone)
      .number("tokens_per_s_alone", 1e3 * batch / median(alone));
  // A move may end within a step.
  figure.set("step_during_n", during.size());
  if (during.empty()) return;
  figure.times("step_during", during)
      .number("tokens_per_s_during", 1e3 * batch / median(during))
      .number("during_of_alone", median(alone) / median(during));
}

// What several versions took.
struct Times {
  std::vector<double> move, verify, commit, swap;
  void add(const ReceivedVersion& version, double swap_ms) {
    move.push_back(version.move_ms);
    verify.push_back(version.verify_ms);
    commit.push_back(version.commit_ms);
    swap.push_back(swap_ms);
  }
  void write(Figure& figure) const {
    figure.times("move", move).times("verify", verify).times("commit", commit);
    figure.times("swap", swap).number("swap_max_ms", *std::max_element(swap.begin(), swap.end()));
  }
};

void receive_deltas(Rank& rank, WeightReceiver& receiver, Generation& generation,
                    const SyncPlan& plan, int64_t version, int64_t epoch, Transport& transport,
                    double whole_ms) {
  Times times;
  int64_t bytes = 0;
  for (int i = 0; i < num_quiet(rank.it); ++i) {
    Transaction transaction = rank.world.transaction(plan, ++version, epoch);
    transaction.base_version = version - 1;
    ReceivedVersion got = receive_version(receiver, transaction, plan, transport, *rank.groups.host,
                                          Deadline::after(kMoveLimit));
    rank.groups.host->receive(std::as_writable_bytes(std::span(&bytes, 1)), kSenderRank, kSizeTag)
        ->wait();
    const double swap_ms = generation.swap(std::move(got.served));
    if (i > 0) times.add(got, swap_ms);
  }
  Figure figure = rank.figure("sync_delta", plan);
  figure.number("changed_share", 1.0 / static_cast<double>(kChangeStride)).set("sent", bytes);
  figure.number("sent_share", static_cast<double>(bytes) / static_cast<double>(plan.bytes));
  times.write(figure);
  figure.number("whole_of_delta", whole_ms / median(times.move)).print();
}

void receive_transactions(Rank& rank, bool is_dry_run) {
  const PairWorld& world = rank.world;
  WeightReceiver receiver("pair", world.spec.table, world.quantization, world.manifest,
                          *rank.kernels);
  Generation generation(world.spec, rank.member, is_dry_run ? 4 : 64, is_dry_run ? 64 : 1024);
  int64_t version = 0;
  int64_t epoch = 0;
  for (const int64_t mib : rank.it.transaction_mib) {
    const SyncPlan plan = world.plan(mib << 20, ++epoch);
    GroupTransport transport(*rank.groups.weights, kReceiverRank, rank.member.device());
    const auto take = [&] {
      return receive_version(receiver, world.transaction(plan, ++version, epoch), plan, transport,
                             *rank.groups.host, Deadline::after(kMoveLimit));
    };
    Times quiet, busy;
    for (int i = 0; i < num_quiet(rank.it); ++i) {
      ReceivedVersion got = take();
      const double swap_ms = generation.swap(std::move(got.served));
      if (i > 0) quiet.add(got, swap_ms);  // the first one allocates and captures
    }
    Figure resting = rank.figure("sync_transaction", plan);
    quiet.write(resting);
    rank.add_rate(resting, "move", plan.bytes, median(quiet.move));
    resting.print();

    std::vector<Busy> moves;
    const size_t first_step = generation.steps().size();
    generation.set_running(true);
    for (int i = 0; i < num_busy(rank.it); ++i) {
      generation.wait_for_steps(is_dry_run ? 4 : 20);
      ReceivedVersion got = take();
      const double swap_ms = generation.swap(std::move(got.served));
      busy.add(got, swap_ms);
      moves.push_back({got.begin, got.end, SteadyClock::now()});
    }
    generation.wait_for_steps(is_dry_run ? 4 : 20);
    generation.set_running(false);
    Figure generating = rank.figure("sync_while_generating", plan);
    busy.write(generating);
    rank.add_rate(generating, "move", plan.bytes, median(busy.move));
    generating.number("move_of_quiet", median(quiet.move) / median(busy.move));
    add_generation(generating, generation, first_step, moves);
    generating.number("peak_gib", static_cast<double>(peak_device_bytes(rank.member.device())) /
                                      static_cast<double>(int64_t{1} << 30));
    generating.print();
    receive_deltas(rank, receiver, generation, plan, version, epoch, transport, median(quiet.move));
    version += num_quiet(rank.it);
  }
}

void run_rank(const SyncCase& sync_case, const PairOptions& options, int port, int rank,
              double peer_ms) {
  for (const auto& [name, value] : sync_case.channels.variables) set_env(name, value);
  Rank self(sync_case, options.seat(port, rank), rank, peer_ms);
  progress(fmt::format("sync {} g={} {}: rank {} has joined", sync_case.model, sync_case.group,
                       sync_case.channels.name, rank));
  if (rank == kSenderRank) {
    const auto weights =
        random_weights(self.world.spec, self.world.quantization, self.member.device());
    send_wire(self, *weights);
    send_transactions(self, weights);
  } else {
    receive_wire(self);
    release_cached_memory(self.member.device());
    if (!sync_case.transaction_mib.empty()) receive_transactions(self, options.is_dry_run());
  }
  start_together(*self.groups.host);  // the store's host leaves last
}

}  // namespace

bool run_sync(const PairOptions& options) {
  const auto cases = sync_cases(options);
  NIBBLE_CHECK(cases.size() <= kMaxCases, "{} cases", cases.size());
  const Shared<PeerCopies> copies;
  bool good = true;
  if (options.place != Place::kCpu) {
    good =
        run_processes({{"peer copy", [&] { measure_peer_copies(options, cases, *copies); }}}, 60s);
  }
  for (size_t c = 0; c < cases.size(); ++c) {
    const int port = free_port();
    const auto body = [&](int rank) { run_rank(cases[c], options, port, rank, copies->ms[c]); };
    good = run_two_ranks(fmt::format("sync {} g={} {}", cases[c].model, cases[c].group,
                                     cases[c].channels.name),
                         body, 150s) &&
           good;
  }
  return good;
}

}  // namespace nibble
